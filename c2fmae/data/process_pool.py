"""Work divided among processes. If one of them fails, dies or is interrupted, all others are killed at once."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from c2fmae.core.errors import UserError

_ITEMS_PER_WORKER = 2000  # for fewer, starting a process takes longer than it saves: it imports torch

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


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
    context, pending = get_context("spawn"), list(reversed(tasks))
    processes, connections = [], list[Connection]()
    try:
        with _sigint_ignored_in_children():
            for _ in range(min(workers, len(tasks))):
                connection, worker_end = context.Pipe()
                process = context.Process(target=_worker_main, args=(work, worker_end), daemon=True)
                process.start()
                worker_end.close()  # so that a dead process is an end of file here
                connection.send(pending.pop())
                processes.append(process)
                connections.append(connection)
        while connections:
            for ready in wait(connections):
                assert isinstance(ready, Connection)
                match _next_message(ready):
                    case "ready", _ if pending:
                        ready.send(pending.pop())
                    case "ready", _:
                        connections.remove(ready)
                        ready.close()
                    case "result", result:
                        yield result
                    case _, error:
                        raise error
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def choose_num_workers(requested: int | None, num_items: int) -> int:
    """Return the requested number of processes, or by default at most one for each core and for 2000 items."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return requested or min(num_cores, 1 + num_items // _ITEMS_PER_WORKER)


def _next_message(connection: Connection) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise UserError(
            "a worker process died: memory ran out, or a script lacks `if __name__ == '__main__':`."
            " Run again with fewer workers, or add that line"
        ) from error
    return message


def _worker_main(work: Callable[[Any], Iterable[Any]], connection: Connection) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if torch := sys.modules.get("torch"):  # imported while `work` was unpickled
        torch.set_num_threads(1)  # there may be as many processes as cores
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            for result in work(task):
                connection.send(("result", result))
            connection.send(("ready", None))
        except UserError as error:
            connection.send(("error", error))
        except Exception:  # other types may not pickle
            connection.send(("error", RuntimeError(f"in a worker process:\n{traceback.format_exc()}")))


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
