"""Locks of directories, and of files that exist only while they are locked."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.workers import exit_if_unguarded

LOCK_SUFFIX = ".lock"
"""Suffix of the names of lock files, which start with a dot. A killed process leaves one, which can be removed."""

log = logging.getLogger(__name__)
_locked_descriptors: set[int] = set()
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


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


@contextmanager
def lock_file(path: Path, *, busy_message: str | None = None) -> Iterator[None]:
    """Create a file, lock it, and remove it at the end of the block.

    If it is locked, wait, or with `busy_message` raise a `UserError` with that message. Unlike directories, files can
    be locked on NFS. Where a file system has no locks, as Lustre by default, nothing is locked; this is a warning if
    work by two processes would be an error.
    """
    exit_if_unguarded()
    descriptor = _open_locked(path, busy_message)
    _locked_descriptors.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _locked_descriptors:
            _locked_descriptors.remove(descriptor)
            path.unlink(missing_ok=True)  # while it is locked: a file that is removed later may be another's
            os.close(descriptor)


def is_file_locked(path: Path) -> bool:
    """Return whether a process holds the lock of an existing file."""
    try:
        os.close(_open_locked(path, "locked"))
    except UserError:
        return True
    return False


def _open_locked(path: Path, busy_message: str | None) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy_message else 0))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            os.close(descriptor)  # its previous holder has removed it
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(f"{busy_message}") from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            if busy_message:
                log.warning(
                    "%s: this file system has no locks. Do not start the same command twice at once", path.parent
                )
            return descriptor


def _release_locks_in_child() -> None:
    """Close inherited locks: a worker that outlives its parent would hold them."""
    while _locked_descriptors:
        os.close(_locked_descriptors.pop())


os.register_at_fork(after_in_child=_release_locks_in_child)
