"""An executor of threads, or of the calling thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def completed(value: R) -> Future[R]:
    """Return a future that has a result."""
    future: Future[R] = Future()
    future.set_result(value)
    return future


class _CallingThread(Executor):
    """An executor that runs each call at once."""

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call the function, and return its result. Exceptions are raised here."""
        return completed(function(*args, **kwargs))


@contextmanager
def open_executor(num_workers: int) -> Iterator[Executor]:
    """Open an executor of some threads; with 0, the calling thread runs each call at once."""
    if not num_workers:
        yield _CallingThread()
        return
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="label")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
