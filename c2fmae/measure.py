"""Estimate of the time, memory and disk space of a run, from a few of its steps. Nothing is written."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import median
from time import perf_counter

from c2fmae.core.experiment import Experiment, Phase, checkpoint_bytes
from c2fmae.core.loading_speed import LoadingSpeed, LoadTimes
from c2fmae.core.loop import TrainingLoop, TrainingState, choose_delay
from c2fmae.core.text import format_count
from c2fmae.core.threads import fitting_threads
from c2fmae.core.watching import peak_memory

WARMUP_STEPS, MEASURED_STEPS = 2, 5
"""Numbers of steps. Compilation, memory allocation and the start of workers fall into the warm-up steps."""

log = logging.getLogger(__name__)


def measure_run(experiment: Experiment, out: Path) -> str:
    """Run a few steps of an experiment, and return a description of the resources that the complete run needs.

    A few more steps reuse one batch, after the loader has ended: they show the speed that no loader can exceed.
    """
    with fitting_threads(experiment.world):
        return _measure_steps(experiment, out)


@dataclass(frozen=True)
class MeasuredPhase:
    """A phase of a run, and some measured steps of it."""

    phase: Phase
    seconds: list[float]
    """Duration of each measured step."""
    reused_seconds: float
    """Duration of a step that reuses a batch."""
    loading: LoadingSpeed

    @property
    def run_seconds(self) -> float:
        """Duration of all steps of the phase."""
        return len(self.phase.steps) * median(self.seconds)

    @property
    def title(self) -> str:
        """The beginning of sentences about the phase; empty if the run has only one."""
        steps = format_count(len(self.phase.steps), "step")
        return f"{self.phase.description}, {steps}: " if self.phase.description else ""


def _measure_steps(experiment: Experiment, out: Path) -> str:
    training = TrainingState.create(experiment.model, experiment.config.training, experiment.teacher)
    phases = [_measure_phase(experiment, training, phase) for phase in experiment.phases]
    return describe_measurement(experiment, training, phases, out)


def _measure_phase(experiment: Experiment, training: TrainingState, phase: Phase) -> MeasuredPhase:
    world = experiment.world
    loop = TrainingLoop(experiment.task, experiment.config.training, experiment.plan, world, choose_delay(world.device))
    steps, waits, times = [], [], []
    training.step = phase.steps.start
    with experiment.open_batches(training.step) as batches:
        before, waited = perf_counter(), 0.0
        batch = next(batches)
        num_measured = min(WARMUP_STEPS + MEASURED_STEPS, len(phase.steps))
        for _ in islice(loop.run(training, chain([batch], batches)), num_measured):
            now = perf_counter()
            steps.append(now - before)
            waits.append(batches.wait_seconds - waited)
            times.append(batches.load_times)
            before, waited = now, batches.wait_seconds
    training.step, reused = phase.steps.start, []
    before = perf_counter()
    for _ in loop.run(training, repeat(batch, MEASURED_STEPS)):
        now = perf_counter()
        reused.append(now - before)
        before = now
    warmup_times = times[WARMUP_STEPS - 1] if len(steps) > WARMUP_STEPS else LoadTimes()
    steps, waits = steps[WARMUP_STEPS:] or steps, waits[WARMUP_STEPS:] or waits
    loading = LoadingSpeed(
        milliseconds=times[-1].minus(warmup_times).milliseconds(),
        num_workers=batches.num_workers,
        waited=sum(waits) / sum(steps),
        ceiling=experiment.plan.batch_size_per_rank / median(reused),
    )
    return MeasuredPhase(phase, steps, median(reused), loading)


def describe_measurement(
    experiment: Experiment, training: TrainingState, phases: Sequence[MeasuredPhase], out: Path
) -> str:
    """Return sentences about the duration, memory and disk space of a run with these measured steps.

    Loading is described for the phase in which it limits most.
    """
    plan, run_seconds = experiment.plan, sum(phase.run_seconds for phase in phases)
    waiting = max(phases, key=lambda phase: phase.loading.expected_wait)
    existing_dir = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    kind = "GPU memory" if experiment.world.device.type == "cuda" else "memory"
    lines = [
        str(plan),
        *(
            f"{phase.title}a step takes {median(phase.seconds):.3g} s ({min(phase.seconds):.3g} to "
            f"{max(phase.seconds):.3g}), {plan.batch_size / median(phase.seconds):.4g} samples/s, "
            f"{phase.loading.waited:.0%} of it waiting for data"
            for phase in phases
        ),
        f"the run takes about {_format_duration(run_seconds)}, without held-out losses, probes and figures",
        f"peak {kind} of a process: {peak_memory() / 2**30:.2g} GiB",
        f"checkpoints need {checkpoint_bytes(experiment, training) / 2**30:.2g} GiB; "
        f"{shutil.disk_usage(existing_dir).free / 2**30:.3g} GiB are free in {existing_dir}",
        f"{waiting.title}without data, reusing one batch, a step takes {waiting.reused_seconds:.3g} s, "
        f"{plan.batch_size / waiting.reused_seconds:.4g} samples/s",
        waiting.loading.describe(),
    ]
    if plan.steps_per_epoch < 50:
        count = format_count(plan.steps_per_epoch, "step")
        lines.append(f"an epoch has only {count}: for so little data, use a smaller training.batch_size")
    return "\n".join(lines)


def _format_duration(seconds: float) -> str:
    """Return a duration in a suitable unit.

    >>> [_format_duration(seconds) for seconds in (50, 5000, 500_000)]
    ['50 seconds', '1.4 hours', '5.8 days']
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.3 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
