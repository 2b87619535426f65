"""Reading of regular files, atomic writes, which are complete even after a power failure, disk space and caches."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from c2fmae.core.errors import UserError

PARTIAL_SUFFIX = ".part"
"""Suffix of temporary files, whose names start with a dot. A killed process may leave one, which can be removed."""


MAX_BYTES = 1 << 30
"""Default limit of the size of a file that is read at once."""

_RESTORE = "Check the path, or restore the file"
_REPLACE = "Replace it with one, or remove it"


def open_descriptor(path: str | Path, *, fix: str | None = None) -> int:
    """Open a regular file for reading and return its descriptor, which the caller closes.

    Pipes, devices and directories are errors: their content may have no end, or never come. Errors end with `fix`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    except OSError as error:
        raise read_error(path, error, fix) from error
    except ValueError as error:  # a NUL character, or half of a surrogate pair
        raise UserError(f"{str(path)!r}: cannot be the name of a file ({error}). {fix or _RESTORE}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise read_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)), fix)
        raise UserError(f"{path}: is not a regular file. {fix or _REPLACE}")
    return descriptor


@contextmanager
def open_file(path: str | Path, *, fix: str | None = None, buffering: int = -1) -> Iterator[BinaryIO]:
    """Open a regular file for reading; an `OSError` in the block is raised as a `UserError` that names it."""
    try:
        with open(open_descriptor(path, fix=fix), "rb", buffering) as file:
            yield file
    except OSError as error:
        raise read_error(path, error, fix) from error


def check_regular_file(path: str | Path, *, fix: str | None = None) -> None:
    """Raise a `UserError` if a path is not that of a regular file, for libraries that open it themselves."""
    os.close(open_descriptor(path, fix=fix))


def read_file(
    path: str | Path, *, max_bytes: int = MAX_BYTES, content: str = "a file", fix: str | None = None
) -> bytes:
    """Return the content of a regular file of at most `max_bytes`; `content` describes it in the error."""
    with open_file(path, fix=fix) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            problem = f"has {size:,} bytes, expected {content} of at most {max_bytes:,}"
            raise UserError(f"{path}: {problem}. {fix or _REPLACE}")
        return file.read(size)  # not more: files of /proc, which have the size 0, may have no end


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES, content: str = "text", fix: str | None = None) -> str:
    """Return the content of a regular file of UTF-8 text."""
    try:
        return read_file(path, max_bytes=max_bytes, content=content, fix=fix).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}). {fix or _REPLACE}") from error


def read_error(path: str | Path, error: OSError, fix: str | None = None) -> UserError:
    """Return the error for a file that cannot be read."""
    return UserError(f"{path}: cannot be read: {error.strerror or error}. {fix or _RESTORE}")


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


def default_cache_dir() -> Path:
    """Return the directory of caches: `C2FMAE_CACHE`, or `c2fmae` in the user's cache directory."""
    chosen = os.environ.get("C2FMAE_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "c2fmae"
    except RuntimeError:  # the user has no home directory
        return Path(tempfile.gettempdir()) / f"c2fmae-{os.getuid()}"
