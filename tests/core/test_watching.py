import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from c2fmae.core import watching
from c2fmae.core.experiment_config import WatchingConfig
from c2fmae.core.loop import StepReport
from c2fmae.core.metric_rows import RowWriter
from c2fmae.core.run_dir import RunDir
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.core.watching import RunLogger, is_due, peak_memory

PLAN = plan_training(TrainingConfig(steps=7, lr=0.1, batch_size=4), num_samples=8, world_size=1)


class Clock:
    """Stands still but for what it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watching, "time", SimpleNamespace(perf_counter=clock, time=lambda: 1e9 + clock()))
    monkeypatch.setattr(watching, "peak_memory", lambda: 3 * 2**20)
    return clock


class RecordingTracker:
    """A tracker that records its calls."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.pictures: list[tuple[int, str, Path]] = []
        self.is_closed = False

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.rows.append((step, values))

    def log_figure(self, step: int, name: str, path: Path) -> None:
        self.pictures.append((step, name, path))

    def close(self) -> None:
        self.is_closed = True


def watch(folder: Path, *, done: int = 0, is_quiet: bool = False, **settings: Any) -> RunLogger:
    config = WatchingConfig(**{"log_every": 3} | settings)
    return RunLogger(RunDir(folder), config, PLAN, start_step=done, experiment_config={"seed": 1}, is_quiet=is_quiet)


def report(step: int, loss: float = 2.0, **values: float) -> StepReport:
    trouble = None if loss == loss else [{"keys": ["a"], "loss": loss}]
    return StepReport(step, {"epoch": step / 2, "lr": 0.1, "loss": loss, **values}, {}, trouble)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(each: RunLogger, clock: Clock, *numbers: int) -> None:
    """Steps of 2 seconds, of which half a second is waiting."""

    def batches() -> Iterator[int]:
        for number in numbers:
            clock.now += 0.5
            yield number

    for number in each.time_batches(batches()):
        clock.now += 1.5
        each.log_step(report(number))
        clock.now += 10.0  # a checkpoint, say: no part of a step


def test_every_step_has_a_row_in_the_order_of_its_values(tmp_path: Path) -> None:
    with watch(tmp_path) as each:
        each.log_step(report(1, beta=0.5, alpha=0.25))
        each.log_step(report(2, 1.5))
        each.log_metrics(2, {"held_out/loss": 3.0})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "epoch": 0.5, "lr": 0.1, "loss": 2.0, "beta": 0.5, "alpha": 0.25}\n'
        '{"step": 2, "epoch": 1.0, "lr": 0.1, "loss": 1.5}\n'
        '{"step": 2, "held_out/loss": 3.0}\n'
    )


def test_a_skipped_step_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watch(tmp_path) as each:
        each.log_step(report(1, torch.nan))
    row = {"step": 1, "epoch": 0.5, "lr": 0.1, "loss": None, "skipped": "not finite"}
    assert rows(tmp_path / "metrics.jsonl") == [row]
    assert "step 1 was skipped: its loss or gradient is not finite\n" in capsys.readouterr().err


def test_a_spike_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watch(tmp_path) as each:
        for step in range(1, 31):
            each.log_step(report(step, 2.0 + 0.01 * (step % 3)))
        each.log_step(report(31, 9.0))
    assert "step 31: the loss is 9, far above its recent median of 2.01\n" in capsys.readouterr().err


def test_a_run_that_goes_on_knows_the_losses_of_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RowWriter(tmp_path / "metrics.jsonl") as before:
        for step in range(1, 31):
            before.write({"step": step, "loss": 2.0 + 0.01 * (step % 3)})
    with watch(tmp_path, done=30) as each:
        each.log_step(report(31, 9.0))
    assert "step 31: the loss is 9, far above its recent median of 2.01\n" in capsys.readouterr().err
    assert len(rows(tmp_path / "metrics.jsonl")) == 31


def test_time_is_told_every_so_many_steps_and_at_the_end(tmp_path: Path, clock: Clock) -> None:
    with watch(tmp_path) as each:
        steps(each, clock, *range(1, 8))
    found = rows(tmp_path / "timing.jsonl")
    assert [row["step"] for row in found] == [3, 6, 7]
    assert [row["time"] for row in found] == [1e9 + 100 + 12 * step - 10 for step in (3, 6, 7)]
    rest = {"seconds": 2.0, "samples_per_second": 2.0, "waited": 0.25, "memory_mib": 3}
    assert [{key: row[key] for key in rest} for row in found] == [rest] * 3
    assert list(found[0]) == ["step", "time", "seconds", "samples_per_second", "waited", "memory_mib"]


def test_a_run_that_goes_on_counts_its_own_steps(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with watch(tmp_path, done=4) as each:
        steps(each, clock, 5, 6, 7)
    assert [(row["step"], row["seconds"]) for row in rows(tmp_path / "timing.jsonl")] == [(6, 2.0), (7, 2.0)]


def test_batches_are_handed_on_as_they_come(tmp_path: Path) -> None:
    with watch(tmp_path) as each:
        assert list(each.time_batches([3, 1, 2])) == [3, 1, 2]
        assert list(each.time_batches([])) == []


def test_other_processes_write_and_say_nothing(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "open_trackers", lambda *_, **__: pytest.fail("opened"))
    with watch(tmp_path, is_quiet=True, done=1, trackers=("tensorboard",)) as each:
        steps(each, clock, 2, 3)
        each.log_step(report(4, torch.nan))
        each.log_metrics(4, {"held_out/loss": 1.0})
        each.log_figure(4, "scenes", tmp_path / "a.png")
        each.print_line("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_trackers_see_what_is_logged_held_out_losses_and_pictures(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, opened = RecordingTracker(), list[Any]()

    def open_trackers(*words: Any, **more: Any) -> list[RecordingTracker]:
        opened.append((words, more))
        return [told]

    monkeypatch.setattr(watching, "open_trackers", open_trackers)
    (tmp_path / "metrics.jsonl").touch()
    with watch(tmp_path, done=1, trackers=("wandb",)) as each:
        steps(each, clock, *range(2, 8))
        each.log_metrics(7, {"held_out/loss": 1.0})
        each.log_figure(7, "scenes", tmp_path / "a.png")
        assert not told.is_closed
    assert told.is_closed
    assert [(step, row["loss"]) for step, row in told.rows[:-1]] == [(3, 2.0), (6, 2.0), (7, 2.0)]
    assert told.rows[-1] == (7, {"held_out/loss": 1.0})
    assert told.pictures == [(7, "scenes", tmp_path / "a.png")]
    since = {"name": tmp_path.name, "config": {"seed": 1}, "start_step": 1}
    assert opened == [((("wandb",), tmp_path), since)]


def test_when_something_is_due() -> None:
    assert [step for step in range(1, 11) if is_due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if is_due(step, 20, 10)] == [10]
    assert [step for step in range(1, 4) if is_due(step, 1, 10)] == [1, 2, 3]


def test_memory_is_what_the_process_has_held() -> None:
    mebibyte = 2**20
    before = peak_memory()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        assert before == torch.cuda.max_memory_allocated()
        return
    assert 50 * mebibyte < before < 1e6 * mebibyte
    assert peak_memory() >= before
