"""Cores of this machine that a process may use, and those that are idle. Only the standard library is needed."""

import math
import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPU_TIMES = Path("/proc/stat")
_SAMPLE_SECONDS = 0.2
_MAX_WORKERS = 16  # a GPU needs 6 to 9 cores


def count_cores() -> int:
    """Return the number of cores that this process may use: those of its CPU affinity, or the quota of its container.

    >>> 1 <= count_cores() <= os.cpu_count()
    True
    """
    return max(1, math.ceil(min(len(_list_cores()), _read_cpu_quota())))


def resolve_num_workers(workers: int | None) -> int:
    """Return a number of loader processes: by default, one for each core of this process, at least 1 and at most 16.

    The processes that torchrun or srun starts on a machine divide its cores.
    """
    if workers is not None:
        return workers
    return min(max(_count_own_cores(), 1), _MAX_WORKERS)


def _count_own_cores() -> int:
    """Return the cores of this process if all processes of its job on this machine get equally many; it may be 0."""
    cores, environ = count_cores(), os.environ
    if "LOCAL_WORLD_SIZE" in environ:  # processes of torchrun have the CPU affinity of torchrun
        return cores // int(environ["LOCAL_WORLD_SIZE"])
    if "SLURM_STEP_TASKS_PER_NODE" in environ:  # for example 4(x2),3; srun may have bound each task to its own cores
        tasks = max(map(int, re.findall(r"(\d+)(?:\(x\d+\))?", environ["SLURM_STEP_TASKS_PER_NODE"])))
        return min(cores, int(environ.get("SLURM_CPUS_ON_NODE", cores)) // tasks)
    return cores


def count_idle_cores() -> int:
    """Return how many of `count_cores()` other processes leave idle in the next fifth of a second, at least 1."""
    before = _read_idle_ticks()
    time.sleep(_SAMPLE_SECONDS)
    idle_ticks = sum(ticks - before.get(core, ticks) for core, ticks in _read_idle_ticks().items())
    if not before:
        return count_cores()
    return max(1, min(count_cores(), round(idle_ticks / (_SAMPLE_SECONDS * os.sysconf("SC_CLK_TCK")))))


def _list_cores() -> Collection[int]:
    """Return the numbers of the cores of this process's CPU affinity, or where it is unknown, of all cores."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


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
        names = {f"cpu{core}" for core in _list_cores()}
        # Columns of a core: user, nice, system, idle, iowait, …
        return {row[0]: int(row[4]) + int(row[5]) for row in rows if row and row[0] in names}
    except (OSError, ValueError, IndexError):
        return {}
