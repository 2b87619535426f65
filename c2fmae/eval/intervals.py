"""How sure a share is."""

import math

NORMAL_QUANTILE_975 = 1.959963984540054  # 97.5 % of a normal distribution lie below


def wilson_interval(proportion: float, count: int, *, scale: float = 1.0) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `count` independent trials; with a scale of 100, in percent.

    >>> tuple(round(end, 3) for end in wilson_interval(0.5, 100))
    (0.404, 0.596)
    >>> wilson_interval(1, 100, scale=100)[1]
    100.0
    """
    correction = NORMAL_QUANTILE_975**2 / count
    centre = proportion + correction / 2
    half_width = NORMAL_QUANTILE_975 * math.sqrt(proportion * (1 - proportion) / count + correction / (4 * count))
    low, high = (centre - half_width) / (1 + correction), (centre + half_width) / (1 + correction)
    return scale * max(low, 0.0), scale * min(high, 1.0)
