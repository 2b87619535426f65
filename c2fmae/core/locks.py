"""One process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c2fmae.core.errors import UserError


@contextmanager
def locked(folder: Path, *, or_say: str | None = None) -> Iterator[None]:
    """Have a folder to oneself: others wait, or are refused with the sentence given; a process that dies lets it go."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if or_say else 0))
        yield
    except BlockingIOError as error:
        raise UserError(f"{or_say}") from error
    finally:
        os.close(descriptor)
