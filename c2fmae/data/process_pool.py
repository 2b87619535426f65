"""Work divided over processes; one that fails, dies or is interrupted ends all the others at once."""

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
    """Yield what `work` yields for each task, in whatever order it comes; one worker works in this very process.

    Close it (`contextlib.closing`) to be sure that the processes have ended, whatever happens in the loop over it.
    Processes are spawned, since a fork copies the locks of torch's threads; so `work` and the tasks must pickle.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield from work(task)
        return
    context, waiting = get_context("spawn"), list(reversed(tasks))
    processes, connections = [], list[Connection]()
    try:
        with _sigint_ignored_in_children():
            for _ in range(min(workers, len(tasks))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_worker_main, args=(work, theirs), daemon=True)
                process.start()
                theirs.close()  # so that a dead process is an end of file on our side
                ours.send(waiting.pop())
                processes.append(process)
                connections.append(ours)
        while connections:
            for line in wait(connections):
                assert isinstance(line, Connection)
                match _next_message(line):
                    case "ready", _ if waiting:
                        line.send(waiting.pop())
                    case "ready", _:
                        connections.remove(line)
                        line.close()
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
            "a worker process died: memory ran out, or a script starts them outside of `if __name__ == '__main__':`."
            " Run again with fewer workers"
        ) from error
    return message


def _worker_main(work: Callable[[Any], Iterable[Any]], connection: Connection) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if torch := sys.modules.get("torch"):  # by what `work` is made of
        torch.set_num_threads(1)  # there are as many processes as cores
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
        except Exception:  # its own type may not pickle
            connection.send(("error", RuntimeError(f"in a worker process:\n{traceback.format_exc()}")))


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _sigint_ignored_in_children() -> Iterator[None]:
    """Processes started meanwhile do not hear Ctrl-C, not even while they import; their parent does, and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
