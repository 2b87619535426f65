"""The learning rate as a function of the step."""

import math


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float = 0.0) -> float:
    """Return the share of the peak at a step: up in a line to 1 in `warmup` steps, then down a cosine to `floor`.

    The first step already learns, and the floor is what a step after the last would have.

    >>> [round(warmup_cosine(step, total=6, warmup=2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
