"""Metrics, timing, progress and trackers of a run."""

import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch

from c2fmae.core.experiment_config import WatchingConfig
from c2fmae.core.files import fsync
from c2fmae.core.loading_speed import LoadTimes, TimedLoader
from c2fmae.core.loop import StepReport
from c2fmae.core.metric_rows import RowWriter, iterate_rows_from_end
from c2fmae.core.progress import NO_LABELS, ProgressDisplay
from c2fmae.core.run_dir import RunDir
from c2fmae.core.spikes import SpikeDetector
from c2fmae.core.trackers import Tracker, open_trackers
from c2fmae.core.training import TrainingPlan

B = TypeVar("B")


class RunLogger(AbstractContextManager["RunLogger"]):
    """A logger to metric and timing files, the progress display and trackers. Only the main process logs."""

    def __init__(
        self,
        run_dir: RunDir,
        config: WatchingConfig,
        plan: TrainingPlan,
        *,
        start_step: int,
        experiment_config: Mapping[str, Any],
        value_labels: Mapping[str, str] = NO_LABELS,
        is_quiet: bool,
    ) -> None:
        self._run_dir, self._config, self._plan, self._is_quiet = run_dir, config, plan, is_quiet
        self._spikes = SpikeDetector()
        if start_step and not is_quiet:
            self._spikes.restore(iterate_rows_from_end(run_dir.metrics))
        self._trackers: list[Tracker] = []
        self._exit_stack = ExitStack()
        self._progress = ProgressDisplay(
            total_steps=plan.steps,
            start_step=start_step,
            samples_per_step=plan.batch_size,
            log_every=config.log_every,
            value_labels=value_labels,
            is_quiet=is_quiet,
        )
        if not is_quiet:
            self._metrics = self._exit_stack.enter_context(RowWriter(run_dir.metrics))
            self._timing = self._exit_stack.enter_context(RowWriter(run_dir.timing))
            self._trackers = open_trackers(
                config.trackers, run_dir.path, name=run_dir.path.name, config=experiment_config, start_step=start_step
            )
        for tracker in self._trackers:
            self._exit_stack.callback(tracker.close)
        self._timed_step, self._seconds, self._waited = start_step, 0.0, 0.0
        self._measured_until = time.perf_counter()
        self._is_between_steps, self._batch_wait = True, 0.0
        self._loader: TimedLoader | None = None
        self._load_times = LoadTimes()

    def __enter__(self) -> "RunLogger":
        self._exit_stack.enter_context(self._progress)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit_stack.close()

    def time_batches(self, batches: Iterable[B]) -> Iterator[B]:
        """Yield batches, and measure the time that each takes to load."""
        self._loader = batches if isinstance(batches, TimedLoader) else None
        iterator = iter(batches)
        while True:
            requested_at = time.perf_counter()
            if self._is_between_steps:  # what happened since the last step, such as an evaluation, does not count
                self._measured_until, self._is_between_steps = requested_at, False
            batch = next(iterator, None)
            self._batch_wait += time.perf_counter() - requested_at
            if batch is None:
                return
            yield batch

    def log_step(self, report: StepReport) -> None:
        """Log a step. Its time is that since the last one was logged, or since its batch was requested."""
        if self._is_quiet:
            return
        now = time.perf_counter()
        seconds, waited = now - self._measured_until, self._batch_wait
        self._measured_until, self._is_between_steps, self._batch_wait = now, True, 0.0
        row: dict[str, Any] = {"step": report.step, **report.values}
        if report.skip_details is not None:
            row["skipped"] = "not finite"
            self.print_line(f"step {report.step} was skipped: its loss or gradient is not finite")
        elif warning := self._spikes.add_loss(report.step, report.values["loss"]):
            self.print_line(warning)
        self._metrics.write(row)
        self._progress.update(report.step, row, seconds=seconds, wait_fraction=waited / seconds)
        self._seconds += seconds
        self._waited += waited
        if is_due(report.step, self._config.log_every, self._plan.steps):
            self._write_timing(report.step)
            self._send_to_trackers(report.step, row)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log a row of other metrics, such as held-out losses."""
        if not self._is_quiet:
            self._metrics.write({"step": step, **values})
            self._send_to_trackers(step, values)

    def fsync_metrics(self) -> None:
        """Flush the metrics to the disk. Call it before a checkpoint is saved, since a resume needs its rows."""
        if not self._is_quiet:
            fsync(self._run_dir.metrics)

    def log_figure(self, step: int, name: str, path: Path) -> None:
        """Log an image file to the trackers."""
        for tracker in self._trackers:
            tracker.log_figure(step, name, path)

    def print_line(self, text: str) -> None:
        """Print a line of text."""
        self._progress.print_line(text)

    def _send_to_trackers(self, step: int, values: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def _write_timing(self, step: int) -> None:
        seconds_per_step = self._seconds / (step - self._timed_step)
        loading: dict[str, Any] = {}
        if self._loader is not None:
            milliseconds = self._loader.load_times.minus(self._load_times).milliseconds()
            loading = {f"{stage}_ms": round(mean, 4) for stage, mean in milliseconds.items()}
            loading["workers"] = self._loader.num_workers
            self._load_times = self._loader.load_times
        self._timing.write(
            {
                "step": step,
                "time": round(time.time(), 3),
                "seconds": round(seconds_per_step, 6),
                "samples_per_second": round(self._plan.batch_size / seconds_per_step, 3),
                "waited": round(self._waited / self._seconds, 4),
                "memory_mib": round(peak_memory() / 2**20),
                **loading,
            }
        )
        self._timed_step, self._seconds, self._waited = step, 0.0, 0.0


def peak_memory() -> int:
    """Return the peak memory of this process in bytes: of the GPU, if it uses one."""
    gpu_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return gpu_bytes or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_due(step: int, every: int, total: int) -> bool:
    """Return whether `step` is a positive multiple of `every`, or the last step."""
    return step > 0 and (step % every == 0 or step == total)
