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


def write_whole(path: Path, data: bytes) -> None:
    """Put bytes in the place of what is there; an error leaves that as it was."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # others may be writing the same
    try:
        unfinished.write_bytes(data)
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
