"""The page of a detection run, and the sections on its classes, curves, confusions and examples."""

from pathlib import Path

from c2fmae.core.run_dir import RunDir


def write_detection_report(run_dir: RunDir, result_dir: Path, init: str) -> None:
    """Write the page of a run from the files in its directory. `init` describes the initial weights."""
    raise NotImplementedError
