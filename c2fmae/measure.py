"""What a run would take, from a few of its steps: nothing is written."""

import logging
import shutil
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter

from c2fmae.core.experiment import Experiment, room_for
from c2fmae.core.loop import Loop, Training
from c2fmae.core.watching import peak_memory

WARM_UP, MEASURED = 2, 5
"""Steps: the first ones compile, allocate and wait for workers to start."""

log = logging.getLogger(__name__)


def measure(it: Experiment, out: Path) -> str:
    """Take a few steps of a run as it would be here and now, and say what all of it would take."""
    training = Training.start(it.model, it.settings.training)
    loop = Loop(it.task, it.settings.training, it.plan, it.world)
    steps, waits = [], []
    with it.batches(0) as batches:
        before, waited = perf_counter(), 0.0
        for _ in islice(loop.steps(training, batches), WARM_UP + MEASURED):
            now = perf_counter()
            steps.append(now - before)
            waits.append(batches.seconds_waited - waited)
            before, waited = now, batches.seconds_waited
    return describe(it, training, steps[WARM_UP:] or steps, waits[WARM_UP:] or waits, out)


def describe(it: Experiment, training: Training, steps: list[float], waits: list[float], out: Path) -> str:
    """Put measured steps into sentences."""
    plan, each = it.plan, median(steps)
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    kind = "GPU memory" if it.world.device.type == "cuda" else "memory"
    wait = sum(waits) / sum(steps)
    lines = [
        str(plan),
        f"a step takes {each:.3g} s ({min(steps):.3g} to {max(steps):.3g}), {plan.batch_size / each:.4g} samples/s, "
        f"{wait:.0%} of it waiting for data",
        f"the whole run takes about {_time(each * plan.steps)}, without held-out losses and pictures",
        f"a process holds {peak_memory() / 2**30:.2g} GiB of {kind} at most",
        f"checkpoints take {room_for(it, training) / 2**30:.2g} GiB of the {shutil.disk_usage(there).free / 2**30:.3g} "
        f"GiB that are free in {there}",
    ]
    if wait > 0.1:
        lines.append("it waits for data: try more data.workers; packed data is the quickest")
    if plan.steps_per_epoch < 50:
        count = f"{plan.steps_per_epoch} step{'s' * (plan.steps_per_epoch > 1)}"
        lines.append(f"an epoch has only {count}: on so little data a smaller batch learns more")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    """Return a duration in the unit that suits it.

    >>> [_time(seconds) for seconds in (50, 5000, 500_000)]
    ['50 seconds', '1.4 hours', '5.8 days']
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.3 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
