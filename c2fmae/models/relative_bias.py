"""Relative position bias: a learned number for each offset between two patches, added to attention, as in BEiT."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_NUM_PREFIX_ROWS = 3  # query in prefix, key in prefix, both


class RelativePositionBias(nn.Module):
    """A table for each block and head, zero at the start, in BEiT's layout.

    A table is for the grid of patches that attend to each other in training; for another grid its offsets are
    interpolated (bilinear).
    """

    def __init__(self, grids: Sequence[tuple[int, int]], *, num_heads: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.num_prefix_tokens = num_prefix_tokens
        prefix_rows = _NUM_PREFIX_ROWS if num_prefix_tokens else 0
        self.tables = nn.ParameterList(
            nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1) + prefix_rows, num_heads))
            for rows, columns in grids
        )

    def forward(self, depth: int, grid: tuple[int, int]) -> Float[Tensor, "1 head token token"]:
        """Return what a block, counted from 1, adds to the products of queries and keys.

        `grid` are the rows and columns of the patches that attend to each other in it.
        """
        table, old_grid = self.tables[depth - 1], self.grids[depth - 1]
        num_offsets = (2 * old_grid[0] - 1) * (2 * old_grid[1] - 1)
        offsets = table[:num_offsets].T.unflatten(1, (2 * old_grid[0] - 1, 2 * old_grid[1] - 1))
        if grid != old_grid:
            size = (2 * grid[0] - 1, 2 * grid[1] - 1)
            offsets = F.interpolate(offsets.unsqueeze(0), size, mode="bilinear", align_corners=False).squeeze(0)
        bias = expand_offsets(offsets)
        if self.num_prefix_tokens:
            bias = _add_prefix(bias, table[num_offsets:], self.num_prefix_tokens)
        return bias.unsqueeze(0)

    def block_parameters(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each block."""
        return [[table] for table in self.tables]


def expand_offsets(offsets: Float[Tensor, "head offset_rows offset_columns"]) -> Float[Tensor, "head patch patch"]:
    """Return the number of each query and key: that of the query's offset from the key, row by row.

    The numbers of a query are a part of the reversed table. So no index of all pairs is stored, for the gradient
    neither, and sums of gradients are the same each time.

    >>> expand_offsets(torch.arange(3.0).view(1, 1, 3)).tolist()
    [[[1.0, 0.0], [2.0, 1.0]]]
    """
    rows, columns = ((length + 1) // 2 for length in offsets.shape[1:])
    parts = offsets.flip(1, 2).unfold(1, rows, 1).unfold(2, columns, 1)  # from the last query to the first
    return parts.flip(1, 2).flatten(3).flatten(1, 2)


def _add_prefix(
    bias: Float[Tensor, "head patch patch"], rows: Float[Tensor, "3 head"], num_prefix_tokens: int
) -> Float[Tensor, "head token token"]:
    """Return a bias with the class token and registers before the patches: `rows` are those at the table's end."""
    num_patches = bias.shape[1]
    query, key, both = rows[:, :, None, None].unbind()
    first = torch.cat([both.expand(-1, -1, num_prefix_tokens), query.expand(-1, -1, num_patches)], dim=2)
    others = torch.cat([key.expand(-1, num_patches, num_prefix_tokens), bias], dim=2)
    return torch.cat([first.expand(-1, num_prefix_tokens, -1), others], dim=1)
