"""Work divided among processes. If one of them fails, dies or is interrupted, all others are killed at once."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from c2fmae.core.cores import count_cores
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.failures import convert_failure
from c2fmae.core.workers import exit_if_unguarded, worker_death_error

_ITEMS_PER_WORKER = 2000  # for fewer, starting a process takes longer than it saves: it imports torch
_EXIT_SECONDS = 10.0  # for a worker that has closed its connection

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Worker:
    """A process, with the parent's end of the connection to it."""

    process: BaseProcess
    connection: Connection

    def send(self, value: object) -> None:
        try:
            self.connection.send(value)
        except ConnectionError as error:
            raise self._death_error() from error

    def receive(self) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._death_error() from error
        return message

    def _death_error(self) -> UserError | RunError:
        self.process.join(_EXIT_SECONDS)
        return worker_death_error(self.process.exitcode)


def run_in_processes(
    work: Callable[[TaskT], Iterable[ResultT]], tasks: Sequence[TaskT], workers: int
) -> Generator[ResultT, None, None]:
    """Yield the results of `work` for all tasks, in any order. With one worker, run it in the calling process.

    Close the generator (`contextlib.closing`) to make sure that the processes have ended. They are spawned, since a
    fork copies the locks of torch's threads, so `work` and the tasks must be picklable.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield from work(task)
        return
    exit_if_unguarded()
    context, pending = get_context("spawn"), list(reversed(tasks))
    pool = list[_Worker]()
    try:
        with _sigint_ignored_in_children():
            for _ in range(min(workers, len(tasks))):
                connection, worker_end = context.Pipe()
                # `work` is not an argument: multiprocessing writes these to a pipe that a dead process does not close,
                # so that arguments beyond its 64 KiB would block the parent for ever.
                process = context.Process(target=_worker_main, args=(worker_end,), daemon=True)
                process.start()
                worker_end.close()  # so that a dead process is an end of file here
                pool.append(_Worker(process, connection))
        for worker in pool:
            worker.send(work)
            worker.send(pending.pop())
        active = {worker.connection: worker for worker in pool}
        while active:
            for ready in wait(list(active)):
                assert isinstance(ready, Connection)
                worker = active[ready]
                match worker.receive():
                    case "ready", _ if pending:
                        worker.send(pending.pop())
                    case "ready", _:
                        del active[ready]
                        ready.close()
                    case "result", result:
                        yield result
                    case _, error:
                        raise error
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()


def choose_num_workers(requested: int | None, num_items: int) -> int:
    """Return the requested number of processes, or by default at most one for each core and for 2000 items."""
    return requested or min(count_cores(), 1 + num_items // _ITEMS_PER_WORKER)


def _worker_main(connection: Connection) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        messages = _iterate_messages(connection)
        work: Callable[[Any], Iterable[Any]] = next(messages)
        if torch := sys.modules.get("torch"):  # imported while `work` was unpickled
            torch.set_num_threads(1)  # there may be as many processes as cores
        for task in messages:
            for result in work(task):
                connection.send(("result", result))
            connection.send(("ready", None))
    except Exception as error:
        converted: Exception = convert_failure(error)
        if not isinstance(converted, UserError | RunError):  # other types may not pickle
            converted = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
        connection.send(("error", converted))


def _iterate_messages(connection: Connection) -> Iterator[Any]:
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        yield message


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _sigint_ignored_in_children() -> Iterator[None]:
    """Make processes that are started in the block ignore Ctrl-C from their first moment: the parent kills them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
