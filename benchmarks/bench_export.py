"""Time and memory of exporting a ViT-B, including its verification: `python -m benchmarks.bench_export [KIND …]`.

A randomly initialised ViT-B/16 of timm is exported and compared, each kind in a process of its own. The target for timm
is one minute.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
from safetensors.torch import save_file

from c2fmae.exports import EXPORT_KINDS, export

NAME = "vit_base_patch16_224"
LIMIT = 60.0  # seconds


def time_export(kind: str, source: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        exported = export(kind, source, Path(folder) / "out")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    ratio = f", {seconds / LIMIT:.2f} of the target" if kind == "timm" else ""
    print(
        f"export {kind}: {seconds:.1f} s{ratio}; largest difference {exported.max_difference:.1e}; peak {peak:.1f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument(
        "--source", help="export this instead of a ViT-B of timm (set by the command itself for its subprocesses)"
    )
    arguments = parser.parse_args()
    if arguments.source:
        time_export(arguments.kinds[0], arguments.source)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vit.safetensors"
        save_file(timm.create_model(NAME, num_classes=0).state_dict(), file)
        for kind in arguments.kinds or EXPORT_KINDS:
            command = [sys.executable, "-m", "benchmarks.bench_export", kind, "--source", f"timm:{NAME}@{file}"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
