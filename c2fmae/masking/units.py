"""Masks of units: squares of patches that are hidden or visible together (SimMIM, ConMIM, CMAE)."""

import math

from jaxtyping import Bool
from torch import Tensor


def count_masked_units(num_units: int, mask_ratio: float) -> int:
    """Return how many units are hidden: the ratio of them, rounded up, so that the visible ones are rounded down.

    >>> [count_masked_units(49, ratio) for ratio in (0.6, 0.65, 0.75)]  # SimMIM, CMAE, ConMIM
    [30, 32, 37]
    """
    return math.ceil(num_units * mask_ratio - 1e-9)  # 0.07 * 100 is above 7


def repeat_units(
    is_masked: Bool[Tensor, "batch unit"], grid: tuple[int, int], size: int
) -> Bool[Tensor, "batch patch"]:
    """Return the mask of a grid of patches, given that of its units of size × size patches.

    >>> import torch
    >>> repeat_units(torch.tensor([[True, False]]), (2, 4), 2).int().tolist()
    [[1, 1, 0, 0, 1, 1, 0, 0]]
    """
    rows, columns = grid
    if rows % size or columns % size or is_masked.shape[1] * size**2 != rows * columns:
        raise ValueError(
            f"is_masked: expected a mask of the {size}×{size} units of {rows}×{columns} patches, got "
            f"{is_masked.shape[1]} units"
        )
    units = is_masked.unflatten(1, (rows // size, columns // size))
    return units.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2).flatten(1)  # type: ignore[no-any-return]
