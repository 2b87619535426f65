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
from c2fmae.core.files import sync
from c2fmae.core.tensor_file import read_tensors, write_tensors

Facts = dict[str, Any]
Tensors = dict[str, Tensor]

FORMAT = 1
"""What is written. Whoever changes it adds the step from the old one to `MIGRATIONS`."""

MIGRATIONS: dict[int, Callable[[Facts, Tensors], tuple[Facts, Tensors]]] = {}
"""How facts and tensors of a format turn into those of the next."""

_DOCUMENT, _TENSORS = "checkpoint.json", "tensors.safetensors"
_NAME = re.compile(r"(?:\.step-(\d{8,})\.replaced|step-(\d{8,}))")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run is after a step."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """What is not a tensor; goes through JSON."""

    def part(self, name: str) -> Tensors:
        """Return the tensors of one part, `model`, `optimiser` or `ema`, by the names that they have there."""
        return {key.removeprefix(f"{name}/"): each for key, each in self.tensors.items() if key.startswith(f"{name}/")}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint beside the others; one of the same step gives way when the new one is whole."""
    name = _name(checkpoint.step)
    unfinished, replaced = folder / f".{name}.tmp", folder / f".{name}.replaced"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove(unfinished)
            unfinished.mkdir()
            _write(unfinished, checkpoint)
            if (folder / name).exists():
                _remove(replaced)
                (folder / name).rename(replaced)  # a kill between these two lines leaves it in its other name
            unfinished.rename(folder / name)
            sync(folder)
            _remove(replaced)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)  # give its room back
            raise
    except OSError as error:
        raise _could_not_write(folder, checkpoint.step, error) from error
    return folder / name


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, of this or an older format; one that is not whole is refused, with the file to blame."""
    aside = path.with_name(f".{path.name}.replaced")
    path = path if path.exists() or not aside.exists() else aside
    try:
        document = _read_document(path)
        tensors = _read_tensors(path / _TENSORS, document)
    except OSError as error:
        raise _refused(Path(error.filename or path), f"cannot be read: {error.strerror}") from error
    facts = document["facts"]
    for number in range(document["format"], FORMAT):
        facts, tensors = MIGRATIONS[number](facts, tensors)
    return Checkpoint(document["step"], tensors, facts)


def facts_of(path: Path) -> Facts:
    """Return what a checkpoint says of itself; its tensors are not read, whole or not."""
    return dict(_read_document(path)["facts"])


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first; what a killed save left is none."""
    by_step: dict[int, Path] = {}
    for path in sorted(folder.glob("*")):  # one set aside comes first, and counts only until its heir is there
        if (step := step_of(path)) is not None:
            by_step[step] = path
    return [by_step[step] for step in sorted(by_step)]


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest that is whole, and a sentence for each that was refused on the way to it."""
    refused: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        try:
            return load_checkpoint(path), refused
        except UserError as error:
            refused.append(str(error))
    return None, refused


def prune(folder: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the last few, those of every so many steps, and the newest that is whole."""
    _prune(folder, keep_last, keep_every, None)


class CheckpointWriter:
    """Writes checkpoints while training goes on, one at a time."""

    def __init__(self, folder: Path, *, keep_last: int, keep_every: int | None) -> None:
        self._folder, self._keep_last, self._keep_every = folder, keep_last, keep_every
        self._saving: Future[None] | None = None
        self._buffers: Tensors = {}

    def save(self, checkpoint: Checkpoint) -> None:
        """Take a copy to be written; waits for, and raises the problem of, the save before it."""
        self.wait()
        copy = Checkpoint(checkpoint.step, self._copy(checkpoint.tensors), deepcopy(dict(checkpoint.facts)))
        thread = ThreadPoolExecutor(max_workers=1)
        self._saving = thread.submit(self._write, copy)
        thread.shutdown(wait=False)  # it ends with this save, so that processes forked between saves copy no thread

    def wait(self) -> None:
        """Return when the last save is on the disk, or raise what kept it from there."""
        if self._saving:
            wait([self._saving])  # whoever interrupts this finds the save still under way, and its buffers in use
            saving, self._saving = self._saving, None
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

    def _write(self, checkpoint: Checkpoint) -> None:
        path = save_checkpoint(self._folder, checkpoint)
        _prune(self._folder, self._keep_last, self._keep_every, path)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step that a path's name says it is of."""
    match = _NAME.fullmatch(path.name)
    return int(match[1] or match[2]) if match else None


def _dump(document: Facts) -> str:
    return json.dumps(document, indent=2) + "\n"


def _checksum(document: Facts) -> str:
    unsigned = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(_dump(unsigned).encode()).hexdigest()


def _write(path: Path, checkpoint: Checkpoint) -> None:
    checksum = write_tensors(path / _TENSORS, checkpoint.tensors)
    sync(path / _TENSORS)
    document = {
        "format": FORMAT,
        "step": checkpoint.step,
        "facts": dict(checkpoint.facts),
        "tensors": {"bytes": (path / _TENSORS).stat().st_size, "sha256": checksum},
    }
    document = json.loads(_dump(document))  # so that the checksum is that of what a reader will see
    document["sha256"] = _checksum(document)
    (path / _DOCUMENT).write_text(_dump(document), encoding="utf-8", newline="")
    sync(path / _DOCUMENT)
    sync(path)


def _read_document(path: Path) -> Facts:
    if path.is_file():
        _refuse_pickle(path)
        raise _refused(path, f"is not a checkpoint: that is a folder with {_DOCUMENT} and {_TENSORS}")
    file = path / _DOCUMENT
    if not path.exists() or not file.exists():
        raise _refused(file if path.exists() else path, "is missing")
    _refuse_pickle(file)
    try:
        text = file.read_bytes().decode()
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(file, f"is damaged: it is not JSON ({error})") from error
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise _refused(file, "is not about a checkpoint of c2fmae")
    if document["format"] > FORMAT:
        raise UserError(
            f"{path}: was made by a newer c2fmae: it has format {document['format']}, and this one reads {FORMAT} and"
            " older. Install the newer one"
        )
    if text != _dump(document) or document.get("sha256") != _checksum(document):
        raise _refused(file, "is damaged: its checksum is not the one that was noted when it was written")
    if min([*MIGRATIONS, FORMAT]) > document["format"]:
        raise _refused(file, f"has format {document['format']}, which this c2fmae does not know")
    if step_of(path) not in (None, document["step"]):
        raise _refused(file, f"is of step {document['step']}, but its folder is {path.name}")
    return document


def _read_tensors(file: Path, document: Facts) -> Tensors:
    if not file.exists():
        raise _refused(file, "is missing")
    _refuse_pickle(file)
    expected, size = document["tensors"]["bytes"], file.stat().st_size
    if size != expected:
        raise _refused(file, f"is damaged: it has {size} bytes, and {expected} were written")
    try:
        return read_tensors(file, document["tensors"]["sha256"])
    except UserError as error:
        raise UserError(f"{error}. Restore it, or use another checkpoint") from error


def _refuse_pickle(file: Path) -> None:
    """Refuse what `torch.save` and `pickle.dump` write: a zip file, or the first byte of a binary pickle."""
    with file.open("rb") as stream:
        head = stream.read(9)
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and head[8:] != b"{"):
        raise UserError(f"{file}: is a pickle, which can run code when it is read; refused. Use another checkpoint")


def _refused(file: Path, why: str) -> UserError:
    return UserError(f"{file}: {why}. Restore it, or use another checkpoint")


def _is_whole(path: Path) -> bool:
    try:
        expected = _read_document(path)["tensors"]["sha256"]
        with (path / _TENSORS).open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (UserError, OSError):
        return False


def _prune(folder: Path, keep_last: int, keep_every: int | None, known_whole: Path | None) -> None:
    try:
        paths = checkpoints_in(folder)
        for leftover in [path for path in folder.glob(".step-*") if path not in paths]:
            _remove(leftover)
        last = paths[max(0, len(paths) - keep_last) :]
        doomed = [p for p in paths if p not in last and not (keep_every and (step_of(p) or 0) % keep_every == 0)]
        newest_whole = known_whole or next(filter(_is_whole, reversed(paths if doomed else [])), None)
        for path in doomed:
            if path != newest_whole:
                _remove(path)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be removed: {error.strerror}. Check its rights") from error


def _remove(path: Path) -> None:
    """Remove a folder that may not be there; half removed, it has no checkpoint's name any more."""
    if not path.exists():
        return
    if path.suffix != ".removed":
        removed = path.with_name(f".{path.name.lstrip('.')}.removed")
        _remove(removed)
        path = path.rename(removed)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _could_not_write(folder: Path, step: int, error: OSError) -> UserError:
    last = next(filter(_is_whole, reversed(checkpoints_in(folder))), None)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return UserError(
        f"{folder}: the checkpoint of step {step} could not be written: {error.strerror}."
        f" {f'The last one, of step {step_of(last)}, is whole' if last else 'There is no earlier one'}."
        f" {'Free some room' if is_full else 'Mend that'} and run again{' with --resume' if last else ''}"
    )
