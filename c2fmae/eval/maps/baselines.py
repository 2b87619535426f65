"""Instance maps without learning, which any labeller has to exceed."""

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from c2fmae.data.image_regions import RegionConfig, find_region_objects


def make_full_image_map(rows: int, columns: int) -> UInt8[Tensor, "rows columns"]:
    """Return a map whose only object is the entire image."""
    return torch.ones(rows, columns, dtype=torch.uint8)


def make_middle_box_map(rows: int, columns: int) -> UInt8[Tensor, "rows columns"]:
    """Return a map whose only object is a box in the middle, with two thirds of each side.

    >>> make_middle_box_map(3, 6).tolist()
    [[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    """
    ids = torch.zeros(rows, columns, dtype=torch.uint8)
    ids[round(rows / 6) : round(5 * rows / 6), round(columns / 6) : round(5 * columns / 6)] = 1
    return ids


def make_region_map(image: UInt8[Tensor, "channels height width"]) -> Int32[Tensor, "rows columns"]:
    """Return the objects that the labeller `regions` finds: Felzenszwalb's regions of similar colour."""
    regions = find_region_objects(image.expand(3, -1, -1) if len(image) == 1 else image, RegionConfig())
    return torch.from_numpy(regions)
