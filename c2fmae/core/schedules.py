"""Learning rate schedules, as factors of the peak: a linear warm-up, then a decay."""

import math
from collections.abc import Sequence


def warmup_cosine(
    step: int, *, total_steps: int, warmup_steps: int, floor: float = 0.0, warmup_start: float | None = None
) -> float:
    """Return the factor of the peak at a step (from 0): linear up to 1, then a half cosine down to `floor`.

    By default, the first step has the factor 1 / `warmup_steps`; with `warmup_start`, it has that factor, and the first
    step after the warm-up has 1. `floor` would be reached by the step after the last.

    >>> [round(warmup_cosine(step, total_steps=6, warmup_steps=2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return _warm_up(step, warmup_steps, warmup_start)
    fraction = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))


def warmup_linear(
    step: int, *, total_steps: int, warmup_steps: int, floor: float = 0.0, warmup_start: float | None = None
) -> float:
    """Return the factor of the peak at a step: like `warmup_cosine`, but with a straight line down to `floor`.

    >>> [warmup_linear(step, total_steps=6, warmup_steps=2, warmup_start=0.0) for step in range(6)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return _warm_up(step, warmup_steps, warmup_start)
    fraction = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + (1 - floor) * (1 - min(fraction, 1.0))


def warmup_multistep(
    step: int, *, milestones: Sequence[int], gamma: float, warmup_steps: int, warmup_start: float | None = None
) -> float:
    """Return the factor of the peak at a step: linear up to 1, then multiplied by `gamma` at each milestone.

    `milestones` are the first steps with a new factor.

    >>> [warmup_multistep(step, milestones=(3, 5), gamma=0.5, warmup_steps=2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.5, 0.5, 0.25]
    """
    if step < warmup_steps:
        return _warm_up(step, warmup_steps, warmup_start)
    return float(gamma ** sum(step >= milestone for milestone in milestones))


def _warm_up(step: int, warmup_steps: int, start: float | None) -> float:
    if start is None:
        return (step + 1) / warmup_steps
    return start + (1 - start) * step / warmup_steps
