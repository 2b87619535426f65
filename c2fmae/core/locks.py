"""Locks of directories."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.workers import exit_if_unguarded

_locked_descriptors: set[int] = set()


@contextmanager
def lock_dir(folder: Path, *, busy_message: str | None = None) -> Iterator[None]:
    """Lock a directory. If it is locked, wait, or with `busy_message` raise a `UserError` with that message.

    The operating system releases the lock of a process that dies.
    """
    exit_if_unguarded()
    descriptor = os.open(folder, os.O_RDONLY)
    _locked_descriptors.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy_message else 0))
        except BlockingIOError as error:
            raise UserError(f"{busy_message}") from error
        yield
    finally:
        if descriptor in _locked_descriptors:
            _locked_descriptors.remove(descriptor)
            os.close(descriptor)


def _release_locks_in_child() -> None:
    """Close inherited locks: a worker that outlives its parent would hold them."""
    while _locked_descriptors:
        os.close(_locked_descriptors.pop())


os.register_at_fork(after_in_child=_release_locks_in_child)
