"""Checkpoints: directories of a safetensors and a JSON file, written completely or not at all, without pickles.

A checkpoint is written under a name that starts with a dot, flushed to the disk and then renamed, so a directory with a
checkpoint's name is complete unless its disk failed. Only one process at a time writes to a directory of checkpoints.
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from c2fmae.core.checkpoint_migrations import add_kind_and_backbone
from c2fmae.core.config import Config, check_types
from c2fmae.core.errors import UserError
from c2fmae.core.files import fsync, open_file, read_file
from c2fmae.core.json_file import parse_json_object
from c2fmae.core.tensor_file import read_tensors, write_tensors

Metadata = dict[str, Any]
Tensors = dict[str, Tensor]

FORMAT_VERSION = 2
"""Version of the format that is written. A new version needs a migration from the previous one in `MIGRATIONS`."""

MIGRATIONS: dict[int, Callable[[Metadata, Tensors], tuple[Metadata, Tensors]]] = {
    1: lambda metadata, tensors: (add_kind_and_backbone(metadata), tensors)
}
"""Functions from metadata and tensors of a format to those of the next. Tensors are empty where none are read."""

METADATA_FILE, TENSORS_FILE = "checkpoint.json", "tensors.safetensors"

_NAME_PATTERN = re.compile(r"(?:\.step-(\d{8,})\.replaced|step-(\d{8,}))")
_MAX_METADATA_BYTES = 1 << 26
_FIX = "Restore it, or use another checkpoint"


class _DocumentPart(Config):
    model_config = ConfigDict(extra="allow", strict=True)


class _MetadataTypes(_DocumentPart):
    """Types of the metadata that runs have. Other experiments may have none of it."""

    kind: str = ""
    run_id: str | None = None
    config: dict[str, Any] = Field({})
    backbone: dict[str, Any] = Field({})
    classifier: dict[str, Any] = Field({})
    labels: list[Any] | None = None
    samples: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    bad_steps: Annotated[int, Field(ge=0, lt=2**63)] = 0


class _TensorsFile(_DocumentPart):
    bytes: int
    sha256: str


class _Document(_DocumentPart):
    """Types of the content of checkpoint.json, whose checksum may be that of a wrong content."""

    step: Annotated[int, Field(ge=0, lt=2**63)]
    metadata: _MetadataTypes
    tensors: _TensorsFile


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step."""

    step: int
    tensors: Mapping[str, Tensor]
    """Tensors by `component/name`; the components are `model`, `optimiser` and `ema`."""
    metadata: Mapping[str, Any]
    """Everything that is not a tensor, as JSON values."""

    def tensors_of(self, component: str) -> Tensors:
        """Return the tensors of `model`, `optimiser` or `ema` by their names in it."""
        return {
            key.removeprefix(f"{component}/"): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(f"{component}/")
        }


def check_model_tensors(saved: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` if saved tensors differ from those of a model in names, shapes or dtypes."""
    old, new = ({name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (saved, model))
    names = old | new
    if differing := [name for name in names if old.get(name) != new.get(name)]:
        first = differing[0]
        raise UserError(
            f"the checkpoint does not match the config: {len(differing)} of {len(names)} tensors differ in shape, for "
            f"example {first}: {old.get(first, 'none')} → {new.get(first, 'none')}. Start a new run in another --out"
        )
    for name in names:
        if saved[name].dtype != model[name].dtype:
            raise UserError(
                f"the checkpoint was changed after it was written: {name} has dtype {saved[name].dtype}, expected "
                f"{model[name].dtype}. Use another checkpoint"
            )


def step_name(step: int) -> str:
    """Return the name of files and directories that belong to a step.

    >>> step_name(1200)
    'step-00001200'
    """
    return f"step-{step:08d}"


def step_from_path(path: Path) -> int | None:
    """Return the step in the name of a checkpoint's directory; None for any other name."""
    match = _NAME_PATTERN.fullmatch(path.name)
    return int(match[1] or match[2]) if match else None


def save_checkpoint(checkpoint_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint to a directory of checkpoints, replace one of the same step, and return its path."""
    name = step_name(checkpoint.step)
    partial, replaced = checkpoint_dir / f".{name}.tmp", checkpoint_dir / f".{name}.replaced"
    try:
        try:
            checkpoint_dir.mkdir(parents=True, exist_ok=True)
            _remove(partial)
            partial.mkdir()
            _write_checkpoint(partial, checkpoint)
            if (checkpoint_dir / name).exists():
                _remove(replaced)
                (checkpoint_dir / name).rename(replaced)  # after a kill here, the old one is found by this name
            partial.rename(checkpoint_dir / name)
            fsync(checkpoint_dir)
            _remove(replaced)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # free its disk space
            raise
    except OSError as error:
        raise _write_error(checkpoint_dir, checkpoint.step, error) from error
    return checkpoint_dir / name


def load_checkpoint(path: Path, *, with_tensors: bool = True) -> Checkpoint:
    """Read a checkpoint of this or an earlier format. Raise a `UserError` that names the file if it is damaged.

    Without tensors, only the metadata is read and checked.
    """
    replaced = path.with_name(f".{path.name}.replaced")
    path = path if path.exists() or not replaced.exists() else replaced
    try:
        document = _read_metadata_file(path)
        tensors = _read_tensors(path / TENSORS_FILE, document) if with_tensors else {}
    except OSError as error:
        raise _checkpoint_error(Path(error.filename or path), f"cannot be read: {error.strerror}") from error
    metadata = document[_metadata_key(document)]
    for version in range(document["format"], FORMAT_VERSION):
        metadata, tensors = MIGRATIONS[version](metadata, tensors)
    return Checkpoint(document["step"], tensors, metadata)


def read_metadata(path: Path) -> Metadata:
    """Return the metadata of a checkpoint, without reading its tensors."""
    return dict(load_checkpoint(path, with_tensors=False).metadata)


def list_checkpoints(checkpoint_dir: Path) -> list[Path]:
    """Return the checkpoints in a directory, oldest first, without those that a killed save left incomplete."""
    by_step: dict[int, Path] = {}
    for path in sorted(checkpoint_dir.glob("*")):  # `.step-….replaced` sorts before its replacement, which wins
        if (step := step_from_path(path)) is not None:
            by_step[step] = path
    return [by_step[step] for step in sorted(by_step)]


def load_newest_checkpoint(
    checkpoint_dir: Path, *, with_tensors: bool = True, check: Callable[[Path, Checkpoint], None] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint, or None, and an error message for each newer, damaged one.

    `check` raises a `UserError` for a checkpoint that is intact, but cannot be used either.
    """
    errors: list[str] = []
    for path in reversed(list_checkpoints(checkpoint_dir)):
        try:
            checkpoint = load_checkpoint(path, with_tensors=with_tensors)
            if check is not None:
                check(path, checkpoint)
            return checkpoint, errors
        except UserError as error:
            errors.append(str(error))
    return None, errors


def prune_checkpoints(checkpoint_dir: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Remove all checkpoints except the `keep_last` last, multiples of `keep_every`, and the newest intact one."""
    _prune(checkpoint_dir, keep_last, keep_every, None)


class CheckpointWriter:
    """A writer of checkpoints in a background thread, one at a time."""

    def __init__(self, checkpoint_dir: Path, *, keep_last: int, keep_every: int | None) -> None:
        self._checkpoint_dir, self._keep_last, self._keep_every = checkpoint_dir, keep_last, keep_every
        self._pending: Future[None] | None = None
        self._buffers: Tensors = {}

    def save(self, step: int, tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, Any]) -> None:
        """Copy a checkpoint and start writing it. Waits for the previous save first, and raises its error.

        `tensors` are the items of a mapping. A tensor may be freed as soon as the next one is requested.
        """
        self.wait()
        copy = Checkpoint(step, self._copy(tensors), deepcopy(dict(metadata)))
        thread = ThreadPoolExecutor(max_workers=1)
        self._pending = thread.submit(self._save_and_prune, copy)
        thread.shutdown(wait=False)  # ends with this save: workers forked between saves must not copy a thread

    def wait(self) -> None:
        """Wait until the last save is on the disk, or raise its error."""
        if self._pending:
            wait([self._pending])  # after an interrupt here, the save is still pending and its buffers are in use
            saving, self._pending = self._pending, None
            saving.result()

    def _copy(self, tensors: Iterable[tuple[str, Tensor]]) -> Tensors:
        """Copy tensors to buffers that all saves share: allocating memory takes longer than copying.

        Copies from GPUs go to pinned memory, all of them before the only wait.
        """
        buffers, devices = Tensors(), set[torch.device]()
        for name, tensor in tensors:
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            buffers[name] = buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            if tensor.is_cuda:
                devices.add(tensor.device)
        for device in devices:
            torch.cuda.synchronize(device)
        self._buffers = buffers
        return buffers

    def _save_and_prune(self, checkpoint: Checkpoint) -> None:
        path = save_checkpoint(self._checkpoint_dir, checkpoint)
        _prune(self._checkpoint_dir, self._keep_last, self._keep_every, path)


def _to_json(document: Metadata) -> str:
    return json.dumps(document, indent=2) + "\n"  # in ASCII, as the checksums of all formats expect


def _checksum(document: Metadata) -> str:
    unsigned = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(_to_json(unsigned).encode()).hexdigest()


def _write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    checksum = write_tensors(path / TENSORS_FILE, checkpoint.tensors)
    fsync(path / TENSORS_FILE)
    document = {
        "format": FORMAT_VERSION,
        "step": checkpoint.step,
        "metadata": dict(checkpoint.metadata),
        "tensors": {"bytes": (path / TENSORS_FILE).stat().st_size, "sha256": checksum},
    }
    document = json.loads(_to_json(document))  # so that the checksum is that of the document as it is read
    document["sha256"] = _checksum(document)
    (path / METADATA_FILE).write_text(_to_json(document), encoding="utf-8", newline="")
    fsync(path / METADATA_FILE)
    fsync(path)


def _read_metadata_file(path: Path) -> Metadata:
    if path.is_file():
        _reject_pickle(path)
        raise _checkpoint_error(
            path, f"is not a checkpoint, which is a directory with {METADATA_FILE} and {TENSORS_FILE}"
        )
    file = path / METADATA_FILE
    if not path.exists() or not file.exists():
        raise _checkpoint_error(file if path.exists() else path, "is missing")
    _reject_pickle(file)
    data = read_file(file, max_bytes=_MAX_METADATA_BYTES, content="JSON", fix=_FIX)
    try:
        text = data.decode()
        document = parse_json_object(text)
    except ValueError as error:
        raise _checkpoint_error(file, str(error)) from error
    version = document.get("format")
    if type(version) is not int:
        raise _checkpoint_error(file, "is not a checkpoint of c2fmae: it has no format version")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: was written by a newer c2fmae (format {version}, this version reads up to {FORMAT_VERSION}). "
            "Upgrade c2fmae"
        )
    if text != _to_json(document) or document.get("sha256") != _checksum(document):
        raise _checkpoint_error(file, "is damaged: its checksum is not the one stored when it was written")
    if min([*MIGRATIONS, FORMAT_VERSION]) > version:
        raise _checkpoint_error(file, f"has format {version}, which this version does not support")
    try:
        check_types(_Document, {**document, "metadata": document.get(_metadata_key(document))}, str(file))
    except UserError as error:
        raise UserError(f"{error}. {_FIX}") from error
    if step_from_path(path) not in (None, document["step"]):
        raise _checkpoint_error(file, f"is of step {document['step']}, but its directory is {path.name}")
    return document


def _read_tensors(file: Path, document: Metadata) -> Tensors:
    if not file.exists():
        raise _checkpoint_error(file, "is missing")
    _reject_pickle(file)
    expected, size = document["tensors"]["bytes"], file.stat().st_size
    if size != expected:
        raise _checkpoint_error(file, f"is damaged: it has {size} bytes, expected {expected}")
    try:
        return read_tensors(file, document["tensors"]["sha256"])
    except UserError as error:
        raise UserError(f"{error}. {_FIX}") from error


def _metadata_key(document: Metadata) -> str:
    return "facts" if document["format"] == 1 else "metadata"


def _reject_pickle(file: Path) -> None:
    """Reject files of `torch.save` and `pickle.dump`: a zip archive, or the first byte of a binary pickle."""
    with open_file(file, fix=_FIX) as stream:
        head = stream.read(9)
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and head[8:] != b"{"):
        raise UserError(f"{file}: is a pickle, which could run code, so it is not read. Use another checkpoint")


def _checkpoint_error(file: Path, problem: str) -> UserError:
    return UserError(f"{file}: {problem}. {_FIX}")


def _is_intact(path: Path) -> bool:
    try:
        expected = _read_metadata_file(path)["tensors"]["sha256"]
        with open_file(path / TENSORS_FILE) as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)  # type: ignore[arg-type]
    except (UserError, OSError):
        return False


def _prune(checkpoint_dir: Path, keep_last: int, keep_every: int | None, known_intact: Path | None) -> None:
    try:
        paths = list_checkpoints(checkpoint_dir)
        for leftover in [path for path in checkpoint_dir.glob(".step-*") if path not in paths]:
            _remove(leftover)
        last = paths[max(0, len(paths) - keep_last) :]
        removable = [
            p for p in paths if p not in last and not (keep_every and (step_from_path(p) or 0) % keep_every == 0)
        ]
        newest_intact = known_intact or next(filter(_is_intact, reversed(paths if removable else [])), None)
        for path in removable:
            if path != newest_intact:
                _remove(path)
    except OSError as error:
        raise UserError(
            f"{error.filename or checkpoint_dir}: cannot be removed: {error.strerror}. Fix its permissions"
        ) from error


def _remove(path: Path) -> None:
    """Remove a directory if it exists. It is renamed first, so that an incomplete one never has a checkpoint's name."""
    if not path.exists():
        return
    if path.suffix != ".removed":
        removed = path.with_name(f".{path.name.lstrip('.')}.removed")
        _remove(removed)
        path = path.rename(removed)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_error(checkpoint_dir: Path, step: int, error: OSError) -> UserError:
    last = next(filter(_is_intact, reversed(list_checkpoints(checkpoint_dir))), None)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return UserError(
        f"{checkpoint_dir}: the checkpoint of step {step} could not be written: {error.strerror}."
        f" {f'The last one, of step {step_from_path(last)}, is intact' if last else 'No earlier one is intact'}."
        f" {'Free disk space' if is_full else 'Fix the cause'} and run again{' with --resume' if last else ''}"
    )
