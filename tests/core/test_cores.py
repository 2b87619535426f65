"""Cores of the machine."""

import os
import time
from pathlib import Path

import pytest

from c2fmae.core import cores
from c2fmae.core.cores import count_cores, count_idle_cores, resolve_num_workers


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores without a quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "_CPU_QUOTA", Path("missing"))


def write_idle_ticks(path: Path, ticks_by_core: dict[int, int]) -> None:
    """Write a file like /proc/stat."""
    rows = [f"cpu{core} 10 0 10 {ticks // 2} {ticks - ticks // 2} 0" for core, ticks in ticks_by_core.items()]
    path.write_text("\n".join(["cpu  40 0 40 400 0 0 0 0 0 0", *rows, "intr 1 2 3"]) + "\n")


@pytest.mark.parametrize(
    ("idle_fractions", "expected"), [((1, 1, 1, 1), 4), ((1, 0.9, 0.2, 0), 2), ((0, 0, 0, 0.1), 1)]
)
@pytest.mark.usefixtures("four_cores")
def test_idle_cores_are_those_that_other_processes_do_not_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, idle_fractions: tuple[float, ...], expected: int
) -> None:
    stat, per_sample = tmp_path / "stat", 0.2 * os.sysconf("SC_CLK_TCK")
    write_idle_ticks(stat, dict.fromkeys(range(6), 100))
    monkeypatch.setattr(cores, "_CPU_TIMES", stat)

    def sleep(_: float) -> None:  # cores 4 and 5, which this process may not use, are idle
        fractions = (*idle_fractions, 1, 1)
        write_idle_ticks(stat, {core: 100 + round(part * per_sample) for core, part in enumerate(fractions)})

    monkeypatch.setattr(time, "sleep", sleep)
    assert count_idle_cores() == expected


@pytest.mark.parametrize(
    ("requested", "processes", "expected"),
    [(None, None, 4), (None, 2, 2), (None, 3, 1), (None, 8, 1), (0, None, 0), (9, 4, 9)],
)
@pytest.mark.usefixtures("four_cores")
def test_by_default_the_processes_of_a_machine_divide_its_cores_among_their_workers(
    monkeypatch: pytest.MonkeyPatch, requested: int | None, processes: int | None, expected: int
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert resolve_num_workers(requested) == expected


@pytest.mark.parametrize(
    ("tasks", "cores_of_job", "expected"),
    [
        ("2", "4", 2),
        ("1(x2),2", "4", 2),  # several machines: the most tasks of one
        ("2", "8", 4),  # each task is bound to four cores of its own
        ("1", "8", 4),  # and to fewer than the job has
        ("12(x3)", "4", 1),
        ("1", None, 4),
    ],
)
@pytest.mark.usefixtures("four_cores")
def test_tasks_of_srun_divide_the_cores_of_their_job_unless_each_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tasks: str, cores_of_job: str | None, expected: int
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    if cores_of_job is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", cores_of_job)
    assert resolve_num_workers(None) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun, started by srun
    assert resolve_num_workers(None) == 1


def test_there_are_at_most_16_workers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "count_cores", lambda: 96)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert resolve_num_workers(None) == 16


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("?", 4)]
)
@pytest.mark.usefixtures("four_cores")
def test_a_container_has_no_more_cores_than_its_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, expected: int
) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(f"{quota}\n")
    monkeypatch.setattr(cores, "_CPU_QUOTA", path)
    assert count_cores() == expected
    monkeypatch.setattr(cores, "_CPU_TIMES", tmp_path / "missing")
    assert count_idle_cores() == expected
    write_idle_ticks(tmp_path / "stat", dict.fromkeys(range(4), 0))
    monkeypatch.setattr(cores, "_CPU_TIMES", tmp_path / "stat")
    monkeypatch.setattr(time, "sleep", lambda _: write_idle_ticks(tmp_path / "stat", dict.fromkeys(range(4), 10_000)))
    assert count_idle_cores() == expected  # although all cores are idle
