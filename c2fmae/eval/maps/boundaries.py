"""Agreement of boundaries: recall, precision and F, with a tolerance of 0.75 % of the diagonal.

The boundary of a region is its own pixels that touch another id, or unlabelled pixels. Where the truth is unlabelled,
such as in the band around the objects of Pascal VOC, predicted boundaries are not counted.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from math import hypot, isqrt

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int32, Int64, Integer
from torch import Tensor

from c2fmae.core.granularity import IGNORE

TOLERANCE = 0.0075
"""Distance at which boundaries match, relative to the diagonal."""


class _Row(IntEnum):
    TRUE = 0
    RECALLED = 1
    PREDICTED = 2
    CORRECT = 3


BoundaryTotals = Int64[Tensor, "*batch 4"] | Float64[Tensor, "*batch 4"]
"""The numbers of true, recalled, predicted and correct boundary pixels."""


class Boundary:
    """The boundary of the regions of a map.

    The ids of the background have no boundary of their own: 0 for the boundaries of objects in an instance map, the
    classes of stuff for those of things in a semantic map.
    """

    def __init__(self, ids: Integer[Tensor, "rows columns"], background: Sequence[int] = ()) -> None:
        self.is_labelled = (ids != IGNORE).numpy()
        self.pixels = find_boundary(ids, background)
        self.radius = boundary_radius(*ids.shape)

    @cached_property
    def _sums(self) -> Int32[np.ndarray, "_ _"]:
        """The number of boundary pixels to the left of each column, in a larger map; computed once for many others."""
        margin = self.radius
        return np.pad(self.pixels, ((margin, margin), (margin + 1, margin))).cumsum(axis=1, dtype=np.int32)

    def count_near(self, points: Bool[np.ndarray, "rows columns"]) -> int:
        """Return how many of some points have a boundary pixel within the tolerance, a Euclidean distance."""
        rows, columns = np.nonzero(points)
        if not len(rows) or not self.pixels.any():
            return 0
        is_near = np.zeros(len(rows), np.bool_)
        for offset in range(-self.radius, self.radius + 1):  # a disk is a range of columns in each row
            reach = isqrt(self.radius**2 - offset**2)
            row, column = rows + self.radius + offset, columns + self.radius + 1
            is_near |= self._sums[row, column + reach] > self._sums[row, column - reach - 1]
        return int(np.count_nonzero(is_near))


def count_boundaries(predicted: Boundary, truth: Boundary) -> Int64[Tensor, "4"]:
    """Return the totals of an image."""
    counted = predicted.pixels & truth.is_labelled
    numbers = [
        np.count_nonzero(truth.pixels),
        predicted.count_near(truth.pixels),
        np.count_nonzero(counted),
        truth.count_near(counted),
    ]
    return torch.tensor(numbers, dtype=torch.int64)


def totals_to_boundary_scores(totals: BoundaryTotals) -> dict[str, Float64[Tensor, "*batch"]]:
    """Return the scores of summed totals. NaN without true (recall) or predicted boundaries; F only without both."""
    true, recalled, predicted, correct = totals.double().unbind(dim=-1)
    recall, precision = recalled / true, correct / predicted
    f_score = 2 * recall * precision / (recall + precision)
    f_score = torch.where((recalled == 0) | (correct == 0), 0.0, f_score)
    return {
        "boundary_recall": recall,
        "boundary_precision": precision,
        "boundary_f": torch.where((true == 0) & (predicted == 0), torch.nan, f_score),
    }


def boundary_radius(rows: int, columns: int) -> int:
    """Return the distance in pixels at which boundaries match.

    >>> boundary_radius(375, 500), boundary_radius(32, 32)
    (5, 1)
    """
    return max(1, round(TOLERANCE * hypot(rows, columns)))


def find_boundary(
    ids: Integer[Tensor, "rows columns"], background: Sequence[int] = ()
) -> Bool[np.ndarray, "rows columns"]:
    """Return the pixels of regions that have a 4-neighbour with another id; regions are all ids but some and 255."""
    values = ids.numpy()
    differs_below, differs_right = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    is_boundary = np.zeros(values.shape, np.bool_)
    is_boundary[1:] |= differs_below
    is_boundary[:-1] |= differs_below
    is_boundary[:, 1:] |= differs_right
    is_boundary[:, :-1] |= differs_right
    for number in (*background, IGNORE):
        is_boundary &= values != number
    return is_boundary
