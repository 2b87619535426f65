"""Run directories: their files, and exclusive access to them."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from c2fmae.core.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_newest_checkpoint, step_name
from c2fmae.core.config import Config, check_types
from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.json_file import read_json, write_json
from c2fmae.core.locks import lock_dir
from c2fmae.core.metric_rows import JsonScalar

RUN_ID_KEY = "run_id"
"""Key of the id of a run, in environment.json and in the metadata of checkpoints."""

RunStatus = Literal["running", "saved-on-signal", "finished", "failed"]


class _StateTypes(Config):
    model_config = ConfigDict(extra="allow", strict=True)

    status: str
    step: Annotated[int, Field(ge=0, lt=2**63)] = 0
    why: str = ""
    time: float = 0.0


class _ResumeTypes(Config):
    model_config = ConfigDict(extra="allow", strict=True)

    step: int = 0
    changes: list[str] = Field([])


class _TorchTypes(Config):
    model_config = ConfigDict(extra="allow", strict=True)

    threads: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class _EnvironmentTypes(Config):
    model_config = ConfigDict(extra="allow", strict=True)

    run_id: str | None = None
    torch: _TorchTypes = _TorchTypes()
    world_size: Annotated[int, Field(ge=1, lt=2**31)] = 1
    resumed: list[_ResumeTypes] = Field([])


@dataclass(frozen=True)
class RunDir:
    """The files of a run."""

    path: Path

    @property
    def config_path(self) -> Path:
        """The complete config, with which the run can be repeated."""
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        """Versions, machine and settings, and the changes at each resume."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Values by step, deterministic: the same for every run of a config and seed."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """Speed, waiting times and memory by step, which differ from run to run."""
        return self.path / "timing.jsonl"

    @property
    def figures(self) -> Path:
        """The directory of figures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The HTML page about the run."""
        return self.path / "report.html"

    @property
    def is_started(self) -> bool:
        """Whether a run has been started in this directory."""
        return self.config_path.exists()

    def list_figures(self) -> list[Path]:
        """Return the figures by step; those written by version 0.1 are in `pictures`."""
        paths = (path for name in ("pictures", self.figures.name) for path in (self.path / name).glob("step-*.png"))
        return sorted(paths, key=lambda path: path.name)

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically: after an error the previous content is unchanged."""
        write_atomic(self.path / name, text.encode(errors="backslashreplace"))  # names of files may be invalid UTF-8

    def write_state(self, status: RunStatus, **details: JsonScalar) -> None:
        """Write the status of the run with details, such as its step and the reason of a failure."""
        write_json(self.path / "state.json", {"status": status, **details, "time": round(time.time(), 3)})

    def read_state(self) -> dict[str, Any] | None:
        """Return the last status with its details and time; None if there is none yet."""
        path = self.path / "state.json"
        return _read_typed(path, _StateTypes, fix="Remove it") if path.exists() else None

    def read_run_id(self) -> str | None:
        """Return the id of the run, which its checkpoints have too; None if version 0.1 wrote it."""
        run_id = self.read_environment().get(RUN_ID_KEY)
        return run_id if isinstance(run_id, str) else None

    def read_environment(self) -> dict[str, Any]:
        """Return the recorded environment of the run; an empty one if its file is missing or damaged."""
        try:
            return _read_typed(self.environment_path, _EnvironmentTypes, fix="Restore it")
        except UserError:  # the environment is only reported
            return {}


def _read_typed(path: Path, types: type[Config], *, fix: str) -> dict[str, Any]:
    """Return the object in a JSON file, or raise a `UserError` if its values do not have the types of a config."""
    values = read_json(path, fix=fix)
    try:
        check_types(types, values, str(path))
    except UserError as error:
        raise UserError(f"{error}. {fix}") from error
    return values


@contextmanager
def open_run_dir(path: Path) -> Iterator[RunDir]:
    """Create a run directory if it does not exist, and lock it for this process."""
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                lock_dir(path, busy_message=f"{path}: is in use by another run. Wait for it, or choose another --out")
            )
            with tempfile.TemporaryFile(dir=path):  # permissions alone do not show whether it can be written to
                pass
        except OSError as error:
            raise UserError(f"{path}: cannot be used: {error.strerror}. Choose another --out") from error
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
