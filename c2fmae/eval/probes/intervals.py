"""How sure a share is."""

import math

NORMAL_95 = 1.959963984540054  # 97.5 % of a normal distribution lie below


def wilson(share: float, count: int, *, scale: float = 1.0) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `count` independent trials; with a scale of 100, in percent.

    >>> tuple(round(end, 3) for end in wilson(0.5, 100))
    (0.404, 0.596)
    >>> wilson(1, 100, scale=100)[1]
    100.0
    """
    extra = NORMAL_95**2 / count
    middle = share + extra / 2
    half = NORMAL_95 * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    low, high = (middle - half) / (1 + extra), (middle + half) / (1 + extra)
    return scale * max(low, 0.0), scale * min(high, 1.0)
