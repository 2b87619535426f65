"""Files that are there whole or not at all, whatever moment the power goes."""

import os
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until the disk has what was written: a file's bytes, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, *, mark: str = "") -> None:
    """Put bytes in the place of what is there; an error leaves that as it was.

    Until then they lie under a name with a mark, which is for places where several write the same at once.
    """
    unfinished = path.with_name(f".{path.name}{mark}.tmp")
    try:
        unfinished.write_bytes(data)
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
