"""Agreement of boundaries: recall, precision and F, with a tolerance of 0.75 % of the diagonal.

The boundary of a region is its own pixels that touch another id, or unlabelled pixels. Where the truth is unlabelled,
such as in the band around the objects of Pascal VOC, predicted boundaries are not counted.
"""

from collections.abc import Sequence
from enum import IntEnum
from math import hypot, isqrt

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Integer
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


def count_boundaries(
    predicted: Integer[Tensor, "rows columns"],
    truth: Integer[Tensor, "rows columns"],
    *,
    predicted_background: Sequence[int] = (),
    true_background: Sequence[int] = (),
) -> Int64[Tensor, "4"]:
    """Return the totals of an image.

    The ids of the background have no boundary of their own: 0 for the boundaries of objects in an instance map, the
    classes of stuff for those of things in a semantic map.
    """
    radius = boundary_radius(*truth.shape)
    is_labelled = (truth != IGNORE).numpy()
    true_boundary = find_boundary(truth, true_background)
    predicted_boundary = find_boundary(predicted, predicted_background)
    counted = predicted_boundary & is_labelled
    numbers = [
        np.count_nonzero(true_boundary),
        np.count_nonzero(_is_near(true_boundary, predicted_boundary, radius)),
        np.count_nonzero(counted),
        np.count_nonzero(_is_near(counted, true_boundary, radius)),
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


def _is_near(
    points: Bool[np.ndarray, "rows columns"], others: Bool[np.ndarray, "rows columns"], radius: int
) -> Bool[np.ndarray, " point"]:
    """Return which of the points have one of the others within a Euclidean distance."""
    sums = np.pad(others, ((radius, radius), (radius + 1, radius))).cumsum(axis=1, dtype=np.int32)
    rows, columns = np.nonzero(points)
    is_near = np.zeros(len(rows), np.bool_)
    for offset in range(-radius, radius + 1):  # a disk is a range of columns in each row
        reach = isqrt(radius**2 - offset**2)
        row, column = rows + radius + offset, columns + radius + 1
        is_near |= sums[row, column + reach] > sums[row, column - reach - 1]
    return is_near
