"""Atomic writes of files, which are complete even after a power failure, and a check of free disk space."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from c2fmae.core.errors import UserError

PARTIAL_SUFFIX = ".part"
"""Suffix of temporary files, whose names start with a dot. A killed process may leave one, which can be removed."""


def fsync(path: Path) -> None:
    """Flush a file's content, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_writer(path: Path, *, is_shared: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends, and create its parent directories.

    After an exception the previous content of `path` is unchanged. An `OSError` is raised as a `UserError`. `is_shared`
    is for a path that several processes may write at once: each uses its own temporary file, which remains if the
    process is killed. Without `is_shared`, the next write replaces such a file.
    """
    process = f".{os.getpid()}" if is_shared else ""
    partial = path.with_name(f".{path.name}{process}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        fsync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise UserError(
                f"{path}: cannot be written: {error.strerror or error}. "
                "Free space or fix its permissions, then run again"
            ) from error
        raise


def write_atomic(path: Path, data: bytes, *, is_shared: bool = False) -> None:
    """Write a file atomically, and create its parent directories: after an error the previous content is unchanged."""
    with atomic_writer(path, is_shared=is_shared) as file:
        file.write(data)


def check_disk_space(
    path: Path, *, num_bytes: int, purpose: str = "checkpoints", alternative: str = "lower saving.keep_last"
) -> None:
    """Raise a `UserError` if the disk of `path`, which need not exist yet, has less than `num_bytes` free."""
    existing_dir = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing_dir).free
    if num_bytes > free:
        raise UserError(
            f"{path}: the {purpose} need {_format_bytes(num_bytes)} of disk space, but {_format_bytes(free)} are free. "
            f"Free disk space, choose another --out, or {alternative}"
        )


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
