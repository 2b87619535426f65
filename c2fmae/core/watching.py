"""What is kept and shown of a training while it goes on."""

import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field

from c2fmae.core.config import Config, Count
from c2fmae.core.files import sync
from c2fmae.core.loop import Report
from c2fmae.core.progress import Progress
from c2fmae.core.run_dir import Rows, RunFolder, read_rows
from c2fmae.core.spikes import SpikeWatch
from c2fmae.core.trackers import Tracker, TrackerName, open_trackers
from c2fmae.core.training import Plan

B = TypeVar("B")


class WatchingConfig(Config):
    """What is told of a run. Nothing here changes what it learns."""

    log_every: Count = 10
    """Steps from one line, one row of timing and one point of the trackers to the next; metrics have every step."""
    held_out_every: Count | None = None
    """Steps from one look at the held-out losses to the next; an epoch's, unless given, and always at the end."""
    pictures_every: Count | None = None
    """Steps from one page of reconstructions to the next; ten times in a run, unless given, and always at the end."""
    pictures: Annotated[int, Field(ge=0, le=64)] = 6
    """Scenes on it."""
    trackers: tuple[TrackerName, ...] = ()
    """Also send metrics and pictures there: tensorboard, wandb."""


class Watch(AbstractContextManager["Watch"]):
    """Writes rows of metrics and timing, shows progress, feeds the trackers; but for the first process, nothing."""

    def __init__(
        self,
        run: RunFolder,
        config: WatchingConfig,
        plan: Plan,
        *,
        done: int,
        settings: Mapping[str, Any],
        is_quiet: bool,
    ) -> None:
        self._run, self._config, self._plan, self._is_quiet = run, config, plan, is_quiet
        self._spikes = SpikeWatch()
        if done and not is_quiet:
            self._spikes.see_rows(read_rows(run.metrics))
        self._trackers: list[Tracker] = []
        self._exits = ExitStack()
        self._progress = Progress(
            total=plan.steps, done=done, samples_per_step=plan.batch_size, every=config.log_every, is_quiet=is_quiet
        )
        if not is_quiet:
            self._metrics = self._exits.enter_context(Rows(run.metrics))
            self._timing = self._exits.enter_context(Rows(run.timing))
            self._trackers = open_trackers(
                config.trackers, run.path, name=run.path.name, config=settings, since_step=done
            )
        for tracker in self._trackers:
            self._exits.callback(tracker.close)
        self._timed_step, self._seconds, self._waited = done, 0.0, 0.0
        self._asked_at = self._got_at = time.perf_counter()

    def __enter__(self) -> "Watch":
        self._exits.enter_context(self._progress)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def timed(self, batches: Iterable[B]) -> Iterator[B]:
        """Hand batches on, and note how long each took to come."""
        iterator = iter(batches)
        while True:
            self._asked_at = time.perf_counter()
            batch = next(iterator, None)
            self._got_at = time.perf_counter()
            if batch is None:
                return
            yield batch

    def after(self, report: Report) -> None:
        """Take note of a step."""
        if self._is_quiet:
            return
        seconds, waited = time.perf_counter() - self._asked_at, self._got_at - self._asked_at
        row: dict[str, Any] = {"step": report.step, **report.values}
        if report.trouble is not None:
            row["skipped"] = "not finite"
            self.say(f"step {report.step} was skipped: its loss or gradient is not finite")
        elif warning := self._spikes.see(report.step, report.values["loss"]):
            self.say(warning)
        self._metrics.write(row)
        self._progress.step(report.step, row, seconds=seconds, waited=waited / seconds)
        self._seconds += seconds
        self._waited += waited
        if is_due(report.step, self._config.log_every, self._plan.steps):
            self._time(report.step)
            self._track(report.step, row)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of its own: held-out losses, say."""
        if not self._is_quiet:
            self._metrics.write({"step": step, **values})
            self._track(step, values)

    def sync(self) -> None:
        """Bring the metrics to the disk: a checkpoint must not get there before the rows that lead to it."""
        if not self._is_quiet:
            sync(self._run.metrics)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a picture to the trackers."""
        for tracker in self._trackers:
            tracker.picture(step, name, path)

    def say(self, text: str) -> None:
        """Show a line."""
        self._progress.say(text)

    def _track(self, step: int, values: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def _time(self, step: int) -> None:
        each = self._seconds / (step - self._timed_step)
        self._timing.write(
            {
                "step": step,
                "time": round(time.time(), 3),
                "seconds": round(each, 6),
                "samples_per_second": round(self._plan.batch_size / each, 3),
                "waited": round(self._waited / self._seconds, 4),
                "memory_mib": round(peak_memory() / 2**20),
            }
        )
        self._timed_step, self._seconds, self._waited = step, 0.0, 0.0


def peak_memory() -> int:
    """Return the most bytes that this process has held: of the GPU, if it has one."""
    of_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return of_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_due(step: int, every: int, total: int) -> bool:
    """Return whether something that is done every so many steps, and at the end, is done after this one."""
    return step % every == 0 or step == total
