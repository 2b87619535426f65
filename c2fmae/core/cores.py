"""Cores of this machine, and the number of threads with which torch computes on them.

Threads of OpenMP wait for each other after every operation. Beside other processes one of them often has no core, and
the others wait, by default in a loop that occupies theirs: a step can then take many times as long as with one thread.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPU_TIMES = Path("/proc/stat")
_SAMPLE_SECONDS = 0.2
_MAX_WORKERS = 16  # a GPU needs 6 to 9 cores
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


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


def set_torch_threads(recorded: int | None) -> str | None:
    """Set the number of torch's threads on a CPU, and return a sentence about it if it is not torch's default.

    It is the number that was `recorded` when the run started, since sums of another number have other last bits; for a
    new run, the number of idle cores. A number that is set explicitly, by `OMP_NUM_THREADS` or
    `torch.set_num_threads`, stays.
    """
    cores, default = count_cores(), len(os.sched_getaffinity(0))
    if any(name in os.environ for name in _THREAD_VARIABLES) or torch.get_num_threads() != default:
        return None
    is_usable = recorded is not None and recorded <= cores
    threads = recorded if recorded is not None and is_usable else count_idle_cores()
    if threads == default:
        return None
    torch.set_num_threads(threads)
    reason = "as at the start of the run" if is_usable else "others are in use"
    return f"computing on {threads} of {default} cores: {reason}. Set OMP_NUM_THREADS to use another number"


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
