"""Cores of this machine, and the number of threads with which torch computes on them.

Threads of OpenMP wait for each other after every operation. Beside other processes one of them often has no core, and
the others wait, by default in a loop that occupies theirs: a step can then take many times as long as with one thread.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from c2fmae.core.distributed import World
from c2fmae.core.text import format_count

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPU_TIMES = Path("/proc/stat")
_SAMPLE_SECONDS = 0.2
_MAX_WORKERS = 16  # a GPU needs 6 to 9 cores
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_DEFAULT_THREADS = torch.get_num_threads()  # cores, without their second threads
log = logging.getLogger(__name__)


def count_cores() -> int:
    """Return the number of cores that this process may use: those of its CPU affinity, or the quota of its container.

    >>> 1 <= count_cores() <= os.cpu_count()
    True
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _read_cpu_quota())))


def resolve_num_workers(workers: int | None) -> int:
    """Return a number of loader processes: by default, one for each core of this process, at least 1 and at most 16.

    The processes that torchrun starts on a machine divide its cores.
    """
    if workers is not None:
        return workers
    return min(max(count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1), _MAX_WORKERS)


def count_idle_cores() -> int:
    """Return how many of `count_cores()` other processes leave idle in the next fifth of a second, at least 1."""
    before = _read_idle_ticks()
    time.sleep(_SAMPLE_SECONDS)
    idle_ticks = sum(ticks - before.get(core, ticks) for core, ticks in _read_idle_ticks().items())
    if not before:
        return count_cores()
    return max(1, min(count_cores(), round(idle_ticks / (_SAMPLE_SECONDS * os.sysconf("SC_CLK_TCK")))))


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


def _read_cpu_quota() -> float:
    """Return the cores that the container's CPU quota amounts to; infinity without a quota."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _read_idle_ticks() -> Mapping[str, int]:
    """Return the idle time of each core that this process may use, in clock ticks; nothing where it is unknown."""
    try:
        rows = [line.split() for line in _CPU_TIMES.read_text().splitlines()]
        names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        # Columns of a core: user, nice, system, idle, iowait, …
        return {row[0]: int(row[4]) + int(row[5]) for row in rows if row and row[0] in names}
    except (OSError, ValueError, IndexError):
        return {}
