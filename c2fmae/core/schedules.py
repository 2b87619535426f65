"""Learning rate schedule."""

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, floor: float = 0.0) -> float:
    """Return the factor of the peak at a step (from 0): linear up to 1, then a half cosine down to `floor`.

    The first step has a factor above 0; `floor` would be reached by the step after the last.

    >>> [round(warmup_cosine(step, total_steps=6, warmup_steps=2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    fraction = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
