"""Opening and reading of data files."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from c2fmae.core.errors import UserError


def open_descriptor(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor, which the caller closes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    except OSError as error:
        raise read_error(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a regular file. Replace it with one, or remove it")
    return descriptor


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; an `OSError` in the block is raised as a `UserError` that names it."""
    try:
        with open(open_descriptor(path), "rb") as file:
            yield file
    except OSError as error:
        raise read_error(path, error) from error


def read_file(path: str | Path) -> bytes:
    """Return the content of a regular file."""
    with open_file(path) as file:
        return file.read()


def read_error(path: str | Path, error: OSError) -> UserError:
    """Return the error for a data file that cannot be read."""
    return UserError(f"{path}: cannot be read: {error.strerror}. Check the path, or restore the file")
