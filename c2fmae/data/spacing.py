"""Evenly spaced samples of a data set."""

import numpy as np


def evenly_spaced_indices(total: int, count: int, *, centred: bool = False) -> list[int]:
    """Return the indices of at most `count` of `total` items, evenly spaced and in order.

    The items are divided into `count` intervals of equal length; the first of each is taken, or with `centred` the one
    in the middle.

    >>> evenly_spaced_indices(10, 3), evenly_spaced_indices(10, 3, centred=True), evenly_spaced_indices(2, 3)
    ([0, 3, 6], [1, 5, 8], [0, 1])
    """
    count = min(count, total)
    if centred:
        return [(2 * i + 1) * total // (2 * count) for i in range(count)]
    indices: list[int] = np.linspace(0, total, count, endpoint=False).astype(int).tolist()
    return indices
