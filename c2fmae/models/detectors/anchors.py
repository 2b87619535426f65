"""Anchors: the boxes that the RPN starts from."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def create_anchors(
    grids: Sequence[tuple[int, int]],
    *,
    strides: Sequence[int],
    sizes: Sequence[float],
    ratios: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
) -> list[Float[Tensor, "_ 4"]]:
    """Return the anchors of each map: for each cell, row by row, one box of each ratio.

    `grids` are the rows and columns of the maps. As in detectron2 and MMDetection, the anchors of cell (i, j) are
    centred on the pixel position (i, j) × stride, and their sides are not rounded. Strides are never inferred from
    sizes of maps. `dtype` must be float32 or float64: with bfloat16, positions would be off by several pixels.
    """
    anchors = []
    for (rows, columns), stride, size in zip(grids, strides, sizes, strict=True):
        root = torch.tensor(ratios, dtype=dtype, device=device).sqrt()
        half = torch.stack([size / root, size * root], dim=1) / 2  # half of the width and the height
        x, y = (torch.arange(count, dtype=dtype, device=device) * stride for count in (columns, rows))
        centres = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=2).view(-1, 1, 2)
        anchors.append(torch.cat([centres - half, centres + half], dim=2).view(-1, 4))
    return anchors
