"""One process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c2fmae.core.errors import UserError

_held: set[int] = set()


@contextmanager
def locked(folder: Path, *, or_say: str | None = None) -> Iterator[None]:
    """Have a folder to oneself: others wait, or are refused with the sentence given; a process that dies lets it go."""
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if or_say else 0))
        except BlockingIOError as error:
            raise UserError(f"{or_say}") from error
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _let_go() -> None:
    """A forked worker that outlives its parent would hold what the parent held."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
