import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from c2fmae.core import watching
from c2fmae.core.experiment_config import WatchingConfig
from c2fmae.core.loading_speed import LoadTimes
from c2fmae.core.loop import StepReport
from c2fmae.core.metric_rows import RowWriter
from c2fmae.core.run_dir import RunDir
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.core.watching import RunLogger, is_due, peak_memory

PLAN = plan_training(TrainingConfig(steps=7, lr=0.1, batch_size=4), num_samples=8, world_size=1)


class Clock:
    """A clock that a test sets."""

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
        self.figures: list[tuple[int, str, Path]] = []
        self.is_closed = False

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.rows.append((step, values))

    def log_figure(self, step: int, name: str, path: Path) -> None:
        self.figures.append((step, name, path))

    def close(self) -> None:
        self.is_closed = True


def watch(folder: Path, *, done: int = 0, is_quiet: bool = False, **settings: Any) -> RunLogger:
    config = WatchingConfig(**{"log_every": 3} | settings)
    return RunLogger(RunDir(folder), config, PLAN, start_step=done, experiment_config={"seed": 1}, is_quiet=is_quiet)


def report(step: int, loss: float = 2.0, **values: float) -> StepReport:
    details = None if loss == loss else [{"keys": ["a"], "loss": loss}]
    return StepReport(step, {"epoch": step / 2, "lr": 0.1, "loss": loss, **values}, {}, details)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def slow_batches(clock: Clock, *numbers: int) -> Iterator[int]:
    """Yield numbers, each after half a second."""
    for number in numbers:
        clock.now += 0.5
        yield number


def steps(logger: RunLogger, clock: Clock, *numbers: int) -> None:
    """Log steps of 2 seconds, including half a second of waiting."""
    for number in logger.time_batches(slow_batches(clock, *numbers)):
        clock.now += 1.5
        logger.log_step(report(number))
        clock.now += 10.0  # saving a checkpoint, for example, is not part of a step


def test_every_step_has_a_row_in_the_order_of_its_values(tmp_path: Path) -> None:
    with watch(tmp_path) as logger:
        logger.log_step(report(1, beta=0.5, alpha=0.25))
        logger.log_step(report(2, 1.5))
        logger.log_metrics(2, {"held_out/loss": 3.0})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "epoch": 0.5, "lr": 0.1, "loss": 2.0, "beta": 0.5, "alpha": 0.25}\n'
        '{"step": 2, "epoch": 1.0, "lr": 0.1, "loss": 1.5}\n'
        '{"step": 2, "held_out/loss": 3.0}\n'
    )


def test_a_skipped_step_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watch(tmp_path) as logger:
        logger.log_step(report(1, torch.nan))
    row = {"step": 1, "epoch": 0.5, "lr": 0.1, "loss": None, "skipped": "not finite"}
    assert rows(tmp_path / "metrics.jsonl") == [row]
    assert "step 1 was skipped: its loss or gradient is not finite\n" in capsys.readouterr().err


def test_a_spike_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watch(tmp_path) as logger:
        for step in range(1, 31):
            logger.log_step(report(step, 2.0 + 0.01 * (step % 3)))
        logger.log_step(report(31, 9.0))
    assert "step 31: the loss is 9, far above its recent median of 2.01\n" in capsys.readouterr().err


def test_a_resumed_run_compares_with_earlier_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RowWriter(tmp_path / "metrics.jsonl") as before:
        for step in range(1, 31):
            before.write({"step": step, "loss": 2.0 + 0.01 * (step % 3)})
    with watch(tmp_path, done=30) as logger:
        logger.log_step(report(31, 9.0))
    assert "step 31: the loss is 9, far above its recent median of 2.01\n" in capsys.readouterr().err
    assert len(rows(tmp_path / "metrics.jsonl")) == 31


def test_timing_is_written_at_multiples_and_at_the_end(tmp_path: Path, clock: Clock) -> None:
    with watch(tmp_path) as logger:
        steps(logger, clock, *range(1, 8))
    found = rows(tmp_path / "timing.jsonl")
    assert [row["step"] for row in found] == [3, 6, 7]
    assert [row["time"] for row in found] == [1e9 + 100 + 12 * step - 10 for step in (3, 6, 7)]
    rest = {"seconds": 2.0, "samples_per_second": 2.0, "waited": 0.25, "memory_mib": 3}
    assert [{key: row[key] for key in rest} for row in found] == [rest] * 3
    assert list(found[0]) == ["step", "time", "seconds", "samples_per_second", "waited", "memory_mib"]


def test_timing_of_a_resumed_run_counts_its_own_steps(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with watch(tmp_path, done=4) as logger:
        steps(logger, clock, 5, 6, 7)
    assert [(row["step"], row["seconds"]) for row in rows(tmp_path / "timing.jsonl")] == [(6, 2.0), (7, 2.0)]


def test_the_time_of_late_steps_is_counted_once(tmp_path: Path, clock: Clock) -> None:
    with watch(tmp_path, log_every=2) as logger:
        batches = logger.time_batches(slow_batches(clock, 1, 2, 3, 4))
        for last in (2, 4):
            for _ in range(2):  # the second batch is requested before the first step is logged
                next(batches)
                clock.now += 1.0
            for step in (last - 1, last):
                logger.log_step(report(step))
                clock.now += 0.5
            clock.now += 10.0  # an evaluation
    found = rows(tmp_path / "timing.jsonl")
    assert [(row["step"], row["seconds"], row["waited"]) for row in found] == [
        (step, 1.75, round(2 / 7, 4)) for step in (2, 4)
    ]


def test_batches_are_yielded_unchanged(tmp_path: Path) -> None:
    with watch(tmp_path) as logger:
        assert list(logger.time_batches([3, 1, 2])) == [3, 1, 2]
        assert list(logger.time_batches([])) == []


def test_other_ranks_write_and_print_nothing(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "open_trackers", lambda *_, **__: pytest.fail("opened"))
    with watch(tmp_path, is_quiet=True, done=1, trackers=("tensorboard",)) as logger:
        steps(logger, clock, 2, 3)
        logger.log_step(report(4, torch.nan))
        logger.log_metrics(4, {"held_out/loss": 1.0})
        logger.log_figure(4, "scenes", tmp_path / "a.png")
        logger.print_line("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_trackers_receive_logged_steps_metrics_and_figures(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, opened = RecordingTracker(), list[Any]()

    def open_trackers(*words: Any, **more: Any) -> list[RecordingTracker]:
        opened.append((words, more))
        return [tracker]

    monkeypatch.setattr(watching, "open_trackers", open_trackers)
    (tmp_path / "metrics.jsonl").touch()
    with watch(tmp_path, done=1, trackers=("wandb",)) as logger:
        steps(logger, clock, *range(2, 8))
        logger.log_metrics(7, {"held_out/loss": 1.0})
        logger.log_figure(7, "scenes", tmp_path / "a.png")
        assert not tracker.is_closed
    assert tracker.is_closed
    assert [(step, row["loss"]) for step, row in tracker.rows[:-1]] == [(3, 2.0), (6, 2.0), (7, 2.0)]
    assert tracker.rows[-1] == (7, {"held_out/loss": 1.0})
    assert tracker.figures == [(7, "scenes", tmp_path / "a.png")]
    since = {"name": tmp_path.name, "config": {"seed": 1}, "start_step": 1}
    assert opened == [((("wandb",), tmp_path), since)]


def test_multiples_and_the_last_step_are_due() -> None:
    assert [step for step in range(1, 11) if is_due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if is_due(step, 20, 10)] == [10]
    assert [step for step in range(1, 4) if is_due(step, 1, 10)] == [1, 2, 3]


class TimedBatches:
    """Batches of four samples whose stages take milliseconds."""

    def __init__(self, *numbers: int) -> None:
        self.load_times, self.num_workers, self.numbers = LoadTimes(), 3, list(numbers)

    def __iter__(self) -> Iterator[int]:
        for number in self.numbers:
            self.load_times = self.load_times.plus(LoadTimes(0.004 * number, 0.002, 0.001, 0.003, num_samples=4))
            yield number


def test_timing_rows_have_the_mean_time_of_each_stage_of_loading(tmp_path: Path, clock: Clock) -> None:
    with watch(tmp_path, log_every=2) as logger:
        for number in logger.time_batches(TimedBatches(1, 2, 3, 4)):
            clock.now += 1
            logger.log_step(report(number))
    stages = ("decode_ms", "crop_ms", "stack_ms", "mask_ms", "workers")
    found = [[row[key] for key in stages] for row in rows(tmp_path / "timing.jsonl")]
    assert found == [[1.5, 0.5, 0.25, 0.75, 3], [3.5, 0.5, 0.25, 0.75, 3]]


def test_peak_memory_is_that_of_the_process() -> None:
    mebibyte = 2**20
    before = peak_memory()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        assert before == torch.cuda.max_memory_allocated()
        return
    assert 50 * mebibyte < before < 1e6 * mebibyte
    assert peak_memory() >= before
