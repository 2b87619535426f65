"""Decomposed relative positions: learned embeddings of row and column offsets, as in detectron2."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.models.attention_bias import AxisOffsets


class DecomposedPositions(nn.Module):
    """Tables of row and column offsets for each block, shared by its heads, zero at the start, as in detectron2.

    A table is for the grid of patches that attend to each other in training; for another grid it is interpolated
    (linear).
    """

    def __init__(self, grids: Sequence[tuple[int, int]], *, head_dim: int) -> None:
        super().__init__()
        self.rows, self.columns = (
            nn.ParameterList(nn.Parameter(torch.zeros(2 * grid[axis] - 1, head_dim)) for grid in grids)
            for axis in (0, 1)
        )

    def forward(self, depth: int, grid: tuple[int, int]) -> AxisOffsets:
        """Return the embeddings of a block, counted from 1.

        `grid` are the rows and columns of the patches that attend to each other in it.
        """
        return AxisOffsets(
            _embed_offsets(self.rows[depth - 1], grid[0]), _embed_offsets(self.columns[depth - 1], grid[1])
        )

    def block_parameters(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each block."""
        return [[rows, columns] for rows, columns in zip(self.rows, self.columns, strict=True)]


def _embed_offsets(table: Float[Tensor, "offset dim"], size: int) -> Float[Tensor, "{size} {size} dim"]:
    length = 2 * size - 1
    if len(table) != length:
        table = F.interpolate(table.T.unsqueeze(0), length, mode="linear").squeeze(0).T
    index = torch.arange(size, device=table.device)
    return table[index.unsqueeze(1) - index + size - 1]
