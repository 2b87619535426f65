"""Failures of the environment, such as a lack of memory, as sentences with a fix.

Torch and Python raise them on any line and as different types, so that most are recognised by their text.
"""

import errno
import re
import resource
from collections.abc import Iterator
from typing import TypeVar

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.workers import describe_shared_memory_shortage, loader_worker_death_error

_GPU_MEMORY = r"(?:CUDA|HIP|MPS backend|XPU) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
_OPEN_FILES = r"Too many open files|received 0 items of ancdata"
_SHARED_MEMORY = r"torch_\S+>? .*(?:No space left|Cannot allocate)"
_OTHER_SHORTAGES = {
    r"MemoryError|can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc": (
        "memory ran out. For training, lower training.micro_batch, data.workers or data.prefetch; for an evaluation, "
        "lower batch_size or workers"
    ),
    r"can't start new thread": (
        "no further thread can be started. Raise the limit with `ulimit -u`, or use fewer workers"
    ),
}
_MAX_CAUSES = 8
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

E = TypeVar("E", bound=BaseException)


def describe_failure(error: BaseException) -> str | None:
    """Return a sentence for a failure of the environment, which names what to reduce or free; None for other errors.

    A lack of memory, open files or threads is also found among the causes of an error: a reader may have reported it as
    a property of its file.
    """
    if isinstance(error, RunError):
        return None
    shortages = (_describe_shortage(cause) for cause in _iterate_causes(error))
    return next(filter(None, shortages), None) or _describe_os_error(error)


def convert_failure(error: E) -> E | RunError:
    """Return a `RunError` with the sentence of `describe_failure`, or the error itself if it is another one.

    Errors lose their causes on the way from a worker process.
    """
    failure = describe_failure(error)
    return RunError(failure) if failure else error


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _describe_shortage(error: BaseException) -> str | None:
    if isinstance(error, UserError | RunError):
        return None
    if death := loader_worker_death_error(error):
        return str(death)
    text = f"MemoryError: {error}" if isinstance(error, MemoryError) else str(error)
    if re.search(_OPEN_FILES, text) or (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"more files are needed at once than the {limit} that a process may open. Raise the limit with `ulimit -n "
            "4096`, or use fewer workers"
        )
    if re.search(_SHARED_MEMORY, text):
        return describe_shared_memory_shortage()
    if re.search(_GPU_MEMORY, text):
        size = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        return (
            f"the GPU ran out of memory{f' ({size[1]} more are needed)' if size else ''}. For training, lower "
            "training.micro_batch; for an evaluation, lower batch_size"
        )
    return next((sentence for pattern, sentence in _OTHER_SHORTAGES.items() if re.search(pattern, text)), None)


def _describe_os_error(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    path = f"{error.filename}: " if error.filename is not None else ""
    fix = "Free disk space or fix permissions, then run" if error.errno in _STORAGE_ERRORS else "Run"
    return f"{path}{error.strerror}. {fix} again"
