"""The number of threads with which torch computes on a CPU.

Threads of OpenMP wait for each other after every operation. Beside other processes one of them often has no core, and
the others wait, by default in a loop that occupies theirs: a step can then take many times as long as with one thread.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from c2fmae.core.cores import count_cores, count_idle_cores
from c2fmae.core.distributed import World
from c2fmae.core.text import format_count

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_DEFAULT_THREADS = torch.get_num_threads()  # cores, without their second threads

log = logging.getLogger(__name__)


@contextmanager
def fitting_threads(world: World, recorded: int | None = None) -> Iterator[None]:
    """Compute with a number of torch's threads that fits this machine, within a context; log it if it is not torch's.

    It is the number that was `recorded` when the run started, since sums of another number have other last bits; for a
    new run, the number of idle cores, up to torch's default. A number that is set explicitly, by `OMP_NUM_THREADS` or
    `torch.set_num_threads`, stays, and so does that of several processes and of a process with a GPU.
    """
    is_alone_on_cpu = world.size == 1 and world.device.type == "cpu"
    is_explicit = any(name in os.environ for name in _THREAD_VARIABLES) or torch.get_num_threads() != _DEFAULT_THREADS
    if is_explicit or not is_alone_on_cpu:
        yield
        return
    if recorded is not None and recorded <= count_cores():
        threads, reason = recorded, "as at the start of the run"
    else:
        threads, reason = min(_DEFAULT_THREADS, count_idle_cores()), "no more cores are idle"
    if threads != _DEFAULT_THREADS:
        log.info("%s: %s. OMP_NUM_THREADS sets another number", format_count(threads, "thread"), reason)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(_DEFAULT_THREADS)
