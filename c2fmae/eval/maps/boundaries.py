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
from jaxtyping import Float64, Int32, Int64, Integer
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
        self.shape = (ids.shape[0], ids.shape[1])
        self.is_labelled = (ids != IGNORE).numpy().reshape(-1)
        self.positions = find_boundary(ids, background)
        self.radius = boundary_radius(*self.shape)

    @cached_property
    def _sums(self) -> Int32[np.ndarray, "_ _"]:
        """The number of boundary pixels to the left of each column, in a larger map; computed once for many others."""
        rows, columns = self.shape
        is_boundary = np.zeros((rows + 2 * self.radius, columns + 2 * self.radius + 1), np.bool_)
        is_boundary.reshape(-1)[self._place(self.positions) + self.radius * is_boundary.shape[1] + self.radius + 1] = (
            True
        )
        return is_boundary.cumsum(axis=1, dtype=np.int32)

    def count_near(self, positions: Int64[np.ndarray, " points"]) -> int:
        """Return how many of some pixels have a boundary pixel within the tolerance, a Euclidean distance."""
        if not len(positions) or not len(self.positions):
            return 0
        places, width = self._place(positions), self._sums.shape[1]
        is_near = np.zeros(len(positions), np.bool_)
        for offset in range(2 * self.radius + 1):  # a disk is a range of columns in each row
            reach = isqrt(self.radius**2 - (offset - self.radius) ** 2)
            row = places + (offset * width + self.radius)
            is_near |= np.take(self._sums, row + (1 + reach)) > np.take(self._sums, row - reach)
        return int(np.count_nonzero(is_near))

    def _place(self, positions: Int64[np.ndarray, " points"]) -> Int64[np.ndarray, " points"]:
        """Return the positions of pixels in a map that is as wide as that of the sums."""
        places: Int64[np.ndarray, " points"] = positions + positions // self.shape[1] * (2 * self.radius + 1)
        return places


def count_boundaries(predicted: Boundary, truth: Boundary) -> Int64[Tensor, "4"]:
    """Return the totals of an image."""
    counted = predicted.positions[truth.is_labelled[predicted.positions]]
    numbers = [
        len(truth.positions),
        predicted.count_near(truth.positions),
        len(counted),
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
) -> Int64[np.ndarray, " boundary"]:
    """Return the positions in the flattened map of pixels of regions that have a 4-neighbour with another id.

    Regions are all ids but some, and 255.
    """
    values = ids.numpy()
    differs_below, differs_right = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    is_boundary = np.zeros(values.shape, np.bool_)
    is_boundary[1:] |= differs_below
    is_boundary[:-1] |= differs_below
    is_boundary[:, 1:] |= differs_right
    is_boundary[:, :-1] |= differs_right
    positions = np.flatnonzero(is_boundary)
    found: Int64[np.ndarray, " boundary"] = positions[~np.isin(np.take(values, positions), [*background, IGNORE])]
    return found
