"""The folder of a run: what lies in it, and who may write there."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from c2fmae.core.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_newest_checkpoint, step_name
from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.locks import lock_dir

RunStatus = Literal["running", "saved-on-signal", "finished", "failed"]
JsonScalar = float | int | str | bool | None


@dataclass(frozen=True)
class RunDir:
    """The places in a run's folder."""

    path: Path

    @property
    def config_path(self) -> Path:
        """The config with every setting in it: running it repeats the run."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """What was computed, step by step: the same in every run of a config and seed."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """What took how long: never the same twice."""
        return self.path / "timing.jsonl"

    @property
    def figures(self) -> Path:
        """The folder of reconstructions."""
        return self.path / "pictures"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def is_started(self) -> bool:
        """Whether a run has been here."""
        return self.config_path.exists()

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        write_atomic(self.path / name, text.encode())

    def write_state(self, status: RunStatus, **details: JsonScalar) -> None:
        """Note how the run stands: the step it is at, why it failed."""
        state = {"status": status, **details, "time": round(time.time(), 3)}
        self.write_text("state.json", json.dumps(state, indent=2) + "\n")

    def read_state(self) -> dict[str, Any] | None:
        """Return how the run stood when it last said so; None before it did."""
        path = self.path / "state.json"
        try:
            state = json.loads(path.read_bytes())
            if not isinstance(state, dict):
                raise ValueError("it is no object")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}. Remove it"
            ) from error
        return state


@contextmanager
def open_run_dir(path: Path) -> Iterator[RunDir]:
    """Make a run's folder, if need be, and have it to oneself."""
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                lock_dir(path, busy_message=f"{path} is in use by another run. Wait for it, or give another --out")
            )
            with tempfile.TemporaryFile(dir=path):  # can it be written to? Rights alone do not tell
                pass
        except OSError as error:
            raise UserError(f"{path}: cannot be used: {error.strerror}. Give another --out") from error
        yield RunDir(path)


def find_checkpoint(path: Path, step: int | None = None, *, with_tensors: bool = True) -> Checkpoint:
    """Return the checkpoint at a path, or the newest intact one in a run directory or a directory of checkpoints.

    With `step`, return the checkpoint of that step instead of the newest.
    """
    is_run = RunDir(path).is_started
    if not is_run and not list_checkpoints(path):
        return load_checkpoint(path, with_tensors=with_tensors)
    checkpoint_dir = RunDir(path).checkpoints if is_run else path
    if step is not None:
        return load_checkpoint(checkpoint_dir / step_name(step), with_tensors=with_tensors)
    checkpoint, errors = load_newest_checkpoint(checkpoint_dir, with_tensors=with_tensors)
    if checkpoint is None:
        raise UserError("\n".join([f"{path}: has no intact checkpoint", *errors]))
    return checkpoint


class RowWriter:
    """A file to which rows are added; each is with the operating system when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _write_error(path, error) from error

    def write(self, row: Mapping[str, JsonScalar]) -> None:
        """Add a row, keys in their order; numbers that are not finite become null, which all readers know."""
        json_row = {
            key: None if isinstance(value, float) and not isfinite(value) else value for key, value in row.items()
        }
        line = memoryview(json.dumps(json_row).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise _write_error(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, without a last one whose writing was cut short."""
    return [row for _, row in _read_lines(path)]


def truncate_rows(path: Path, *, after_step: int) -> None:
    """Drop what was noted after a step, and a last row whose writing was cut short; other rows stay to the byte."""
    if path.exists():
        remaining = b"".join(line for line, row in _read_lines(path) if row.get("step", after_step) <= after_step)
        if len(remaining) != path.stat().st_size:
            write_atomic(path, remaining)


def check_disk_space(
    path: Path, *, num_bytes: int, purpose: str = "checkpoints", alternative: str = "lower saving.keep_last"
) -> None:
    """Refuse a place whose disk cannot take so many bytes."""
    existing_dir = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing_dir).free
    if num_bytes > free:
        raise UserError(
            f"{path}: {_format_bytes(num_bytes)} are needed for {purpose}, {_format_bytes(free)} are free. Free some "
            "room, give another"
            f" --out, or {alternative}"
        )


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what changed between two trees of settings, a line for each, by dotted path.

    >>> config_differences({"training": {"lr": 0.1, "steps": 10}}, {"training": {"lr": 0.2, "steps": 10}, "seed": 1})
    ['training.lr: 0.1 → 0.2', 'seed: (not set) → 1']
    """
    old_values, new_values = _flatten(old), _flatten(new)
    changed = [
        key
        for key in old_values | new_values
        if key not in old_values or key not in new_values or old_values[key] != new_values[key]
    ]
    return [f"{key}: {_format_setting(old_values, key)} → {_format_setting(new_values, key)}" for key in changed]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": _tuples_to_lists(value)}
        )
    return flat


def _tuples_to_lists(value: Any) -> Any:
    return [_tuples_to_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _format_setting(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "(not set)"
    return flat[key] if isinstance(flat[key], str) else json.dumps(flat[key], ensure_ascii=False)


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines of a file with what they say."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and line.endswith(b"\n"):
            rows.append((line, row))
        elif number < len(lines):
            raise UserError(f"{path}: line {number} is not a JSON object. Mend or remove it")
    return rows


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _write_error(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written: {error.strerror}. Mend that and run again with --resume")
