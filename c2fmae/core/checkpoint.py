"""Checkpoints: folders of plain tensors and JSON that are there whole or not at all. Nothing is ever unpickled.

A checkpoint is written under a name that starts with a dot and renamed when the disk has all of it, so whatever has a
checkpoint's name is whole, unless its disk failed. Only one process at a time writes to a folder of checkpoints.
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import fsync
from c2fmae.core.tensor_file import read_tensors, write_tensors

Metadata = dict[str, Any]
Tensors = dict[str, Tensor]

FORMAT_VERSION = 1
"""What is written. Whoever changes it adds the step from the old one to `MIGRATIONS`."""

MIGRATIONS: dict[int, Callable[[Metadata, Tensors], tuple[Metadata, Tensors]]] = {}
"""How facts and tensors of a format turn into those of the next."""

_METADATA_FILE, _TENSORS_FILE = "checkpoint.json", "tensors.safetensors"
_NAME_PATTERN = re.compile(r"(?:\.step-(\d{8,})\.replaced|step-(\d{8,}))")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run is after a step."""

    step: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    """What is not a tensor; goes through JSON."""

    def tensors_of(self, component: str) -> Tensors:
        """Return the tensors of one part, `model`, `optimiser` or `ema`, by the names that they have there."""
        return {
            key.removeprefix(f"{component}/"): each
            for key, each in self.tensors.items()
            if key.startswith(f"{component}/")
        }


def save_checkpoint(checkpoint_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint beside the others; one of the same step gives way when the new one is whole."""
    name = _checkpoint_name(checkpoint.step)
    unfinished, replaced = checkpoint_dir / f".{name}.tmp", checkpoint_dir / f".{name}.replaced"
    try:
        try:
            checkpoint_dir.mkdir(parents=True, exist_ok=True)
            _remove(unfinished)
            unfinished.mkdir()
            _write_checkpoint(unfinished, checkpoint)
            if (checkpoint_dir / name).exists():
                _remove(replaced)
                (checkpoint_dir / name).rename(replaced)  # a kill between these two lines leaves it in its other name
            unfinished.rename(checkpoint_dir / name)
            fsync(checkpoint_dir)
            _remove(replaced)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)  # give its room back
            raise
    except OSError as error:
        raise _write_error(checkpoint_dir, checkpoint.step, error) from error
    return checkpoint_dir / name


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, of this or an older format; one that is not whole is refused, with the file to blame."""
    replaced = path.with_name(f".{path.name}.replaced")
    path = path if path.exists() or not replaced.exists() else replaced
    try:
        document = _read_metadata_file(path)
        tensors = _read_tensors(path / _TENSORS_FILE, document)
    except OSError as error:
        raise _checkpoint_error(Path(error.filename or path), f"cannot be read: {error.strerror}") from error
    facts = document["facts"]
    for number in range(document["format"], FORMAT_VERSION):
        facts, tensors = MIGRATIONS[number](facts, tensors)
    return Checkpoint(document["step"], tensors, facts)


def read_metadata(path: Path) -> Metadata:
    """Return what a checkpoint says of itself; its tensors are not read, whole or not."""
    return dict(_read_metadata_file(path)["facts"])


def list_checkpoints(checkpoint_dir: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first; what a killed save left is none."""
    by_step: dict[int, Path] = {}
    for path in sorted(checkpoint_dir.glob("*")):  # one set aside comes first, and counts only until its heir is there
        if (step := step_from_path(path)) is not None:
            by_step[step] = path
    return [by_step[step] for step in sorted(by_step)]


def load_newest_checkpoint(checkpoint_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest that is whole, and a sentence for each that was refused on the way to it."""
    errors: list[str] = []
    for path in reversed(list_checkpoints(checkpoint_dir)):
        try:
            return load_checkpoint(path), errors
        except UserError as error:
            errors.append(str(error))
    return None, errors


def prune_checkpoints(checkpoint_dir: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the last few, those of every so many steps, and the newest that is whole."""
    _prune(checkpoint_dir, keep_last, keep_every, None)


class CheckpointWriter:
    """Writes checkpoints while training goes on, one at a time."""

    def __init__(self, checkpoint_dir: Path, *, keep_last: int, keep_every: int | None) -> None:
        self._checkpoint_dir, self._keep_last, self._keep_every = checkpoint_dir, keep_last, keep_every
        self._pending: Future[None] | None = None
        self._buffers: Tensors = {}

    def save(self, checkpoint: Checkpoint) -> None:
        """Take a copy to be written; waits for, and raises the problem of, the save before it."""
        self.wait()
        copy = Checkpoint(checkpoint.step, self._copy(checkpoint.tensors), deepcopy(dict(checkpoint.metadata)))
        thread = ThreadPoolExecutor(max_workers=1)
        self._pending = thread.submit(self._save_and_prune, copy)
        thread.shutdown(wait=False)  # it ends with this save, so that processes forked between saves copy no thread

    def wait(self) -> None:
        """Return when the last save is on the disk, or raise what kept it from there."""
        if self._pending:
            wait([self._pending])  # whoever interrupts this finds the save still under way, and its buffers in use
            saving, self._pending = self._pending, None
            saving.result()

    def _copy(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Copy to buffers that are kept from save to save: new memory costs more than the copying."""
        for name in self._buffers.keys() - tensors.keys():
            del self._buffers[name]
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        return {name: self._buffers[name] for name in tensors}

    def _save_and_prune(self, checkpoint: Checkpoint) -> None:
        path = save_checkpoint(self._checkpoint_dir, checkpoint)
        _prune(self._checkpoint_dir, self._keep_last, self._keep_every, path)


def _checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def step_from_path(path: Path) -> int | None:
    """Return the step that a path's name says it is of."""
    match = _NAME_PATTERN.fullmatch(path.name)
    return int(match[1] or match[2]) if match else None


def _to_json(document: Metadata) -> str:
    return json.dumps(document, indent=2) + "\n"


def _checksum(document: Metadata) -> str:
    unsigned = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(_to_json(unsigned).encode()).hexdigest()


def _write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    checksum = write_tensors(path / _TENSORS_FILE, checkpoint.tensors)
    fsync(path / _TENSORS_FILE)
    document = {
        "format": FORMAT_VERSION,
        "step": checkpoint.step,
        "facts": dict(checkpoint.metadata),
        "tensors": {"bytes": (path / _TENSORS_FILE).stat().st_size, "sha256": checksum},
    }
    document = json.loads(_to_json(document))  # so that the checksum is that of what a reader will see
    document["sha256"] = _checksum(document)
    (path / _METADATA_FILE).write_text(_to_json(document), encoding="utf-8", newline="")
    fsync(path / _METADATA_FILE)
    fsync(path)


def _read_metadata_file(path: Path) -> Metadata:
    if path.is_file():
        _reject_pickle(path)
        raise _checkpoint_error(
            path, f"is not a checkpoint: that is a folder with {_METADATA_FILE} and {_TENSORS_FILE}"
        )
    file = path / _METADATA_FILE
    if not path.exists() or not file.exists():
        raise _checkpoint_error(file if path.exists() else path, "is missing")
    _reject_pickle(file)
    try:
        text = file.read_bytes().decode()
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _checkpoint_error(file, f"is damaged: it is not JSON ({error})") from error
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise _checkpoint_error(file, "is not about a checkpoint of c2fmae")
    if document["format"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: was made by a newer c2fmae: it has format {document['format']}, and this one reads "
            f"{FORMAT_VERSION} and"
            " older. Install the newer one"
        )
    if text != _to_json(document) or document.get("sha256") != _checksum(document):
        raise _checkpoint_error(file, "is damaged: its checksum is not the one that was noted when it was written")
    if min([*MIGRATIONS, FORMAT_VERSION]) > document["format"]:
        raise _checkpoint_error(file, f"has format {document['format']}, which this c2fmae does not know")
    if step_from_path(path) not in (None, document["step"]):
        raise _checkpoint_error(file, f"is of step {document['step']}, but its folder is {path.name}")
    return document


def _read_tensors(file: Path, document: Metadata) -> Tensors:
    if not file.exists():
        raise _checkpoint_error(file, "is missing")
    _reject_pickle(file)
    expected, size = document["tensors"]["bytes"], file.stat().st_size
    if size != expected:
        raise _checkpoint_error(file, f"is damaged: it has {size} bytes, and {expected} were written")
    try:
        return read_tensors(file, document["tensors"]["sha256"])
    except UserError as error:
        raise UserError(f"{error}. Restore it, or use another checkpoint") from error


def _reject_pickle(file: Path) -> None:
    """Refuse what `torch.save` and `pickle.dump` write: a zip file, or the first byte of a binary pickle."""
    with file.open("rb") as stream:
        head = stream.read(9)
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and head[8:] != b"{"):
        raise UserError(f"{file}: is a pickle, which can run code when it is read; refused. Use another checkpoint")


def _checkpoint_error(file: Path, problem: str) -> UserError:
    return UserError(f"{file}: {problem}. Restore it, or use another checkpoint")


def _is_intact(path: Path) -> bool:
    try:
        expected = _read_metadata_file(path)["tensors"]["sha256"]
        with (path / _TENSORS_FILE).open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
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
            f"{error.filename or checkpoint_dir}: cannot be removed: {error.strerror}. Check its rights"
        ) from error


def _remove(path: Path) -> None:
    """Remove a folder that may not be there; half removed, it has no checkpoint's name any more."""
    if not path.exists():
        return
    if path.suffix != ".removed":
        removed = path.with_name(f".{path.name.lstrip('.')}.removed")
        _remove(removed)
        path = path.rename(removed)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_error(folder: Path, step: int, error: OSError) -> UserError:
    last = next(filter(_is_intact, reversed(list_checkpoints(folder))), None)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return UserError(
        f"{folder}: the checkpoint of step {step} could not be written: {error.strerror}."
        f" {f'The last one, of step {step_from_path(last)}, is whole' if last else 'There is no earlier one'}."
        f" {'Free some room' if is_full else 'Mend that'} and run again{' with --resume' if last else ''}"
    )
