"""Files that are written completely or not at all, even when the power fails."""

import os
from contextlib import suppress
from pathlib import Path

from c2fmae.core.errors import UserError


def fsync(path: Path) -> None:
    """Wait until the disk has what was written: a file's bytes, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, is_shared: bool = False) -> None:
    """Write a file in one step, and its parent directories: after an error the previous content is unchanged.

    `is_shared` is for a path that several processes may write at once: each then has a temporary file of its own, which
    a killed process leaves behind; otherwise the next write replaces it.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp" if is_shared else f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        fsync(unfinished)
        unfinished.replace(path)
        fsync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            raise UserError(
                f"{path}: cannot be written: {error.strerror}. Free space or fix its permissions, then run again"
            ) from error
        raise
