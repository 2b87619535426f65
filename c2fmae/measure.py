"""Estimate of the time, memory and disk space of a run, from a few of its steps. Nothing is written."""

import logging
import shutil
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import median
from time import perf_counter

from c2fmae.core.experiment import Experiment, checkpoint_bytes
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


def _measure_steps(experiment: Experiment, out: Path) -> str:
    training = TrainingState.create(experiment.model, experiment.config.training, experiment.teacher)
    world = experiment.world
    loop = TrainingLoop(experiment.task, experiment.config.training, experiment.plan, world, choose_delay(world.device))
    steps, waits, times = [], [], []
    with experiment.open_batches(0) as batches:
        before, waited = perf_counter(), 0.0
        batch = next(batches)
        for _ in islice(loop.run(training, chain([batch], batches)), WARMUP_STEPS + MEASURED_STEPS):
            now = perf_counter()
            steps.append(now - before)
            waits.append(batches.wait_seconds - waited)
            times.append(batches.load_times)
            before, waited = now, batches.wait_seconds
    training.step, reused = 0, []
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
    return describe_measurement(experiment, training, steps, median(reused), loading, out)


def describe_measurement(
    experiment: Experiment,
    training: TrainingState,
    step_seconds: list[float],
    reused_seconds: float,
    loading: LoadingSpeed,
    out: Path,
) -> str:
    """Return sentences about the duration, memory and disk space of a run with these measured steps.

    `reused_seconds` is the duration of a step that reuses a batch.
    """
    plan, median_seconds = experiment.plan, median(step_seconds)
    existing_dir = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    kind = "GPU memory" if experiment.world.device.type == "cuda" else "memory"
    lines = [
        str(plan),
        f"a step takes {median_seconds:.3g} s ({min(step_seconds):.3g} to {max(step_seconds):.3g}), "
        f"{plan.batch_size / median_seconds:.4g} samples/s, "
        f"{loading.waited:.0%} of it waiting for data",
        f"the run takes about {_format_duration(median_seconds * plan.steps)}, without held-out losses, probes and "
        "figures",
        f"peak {kind} of a process: {peak_memory() / 2**30:.2g} GiB",
        f"checkpoints need {checkpoint_bytes(experiment, training) / 2**30:.2g} GiB; "
        f"{shutil.disk_usage(existing_dir).free / 2**30:.3g} GiB are free in {existing_dir}",
        f"without data, reusing one batch, a step takes {reused_seconds:.3g} s, "
        f"{plan.batch_size / reused_seconds:.4g} samples/s",
        loading.describe(),
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
