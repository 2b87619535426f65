"""Relative position bias: a learned number for each offset between two patches, added to attention, as in BEiT."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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

    def forward(self, grids: Sequence[tuple[int, int]]) -> list[Float[Tensor, "1 head _ _"]]:
        """Return what each block adds to the products of queries and keys.

        `grids` are the grids of patches that attend to each other in each block.
        """
        device = self.tables[0].device
        index = {grid: _offset_index(grid, self.num_prefix_tokens, device) for grid in set(grids)}
        # Contiguous in the last dimension, which fused attention on a GPU needs.
        return [
            _resize(table, old, new).T[:, index[new]].unsqueeze(0)
            for table, old, new in zip(self.tables, self.grids, grids, strict=True)
        ]

    def block_parameters(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each block."""
        return [[table] for table in self.tables]


def _resize(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    if old_grid == new_grid:
        return table
    old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old_grid, new_grid))
    offsets, prefix = table[: old[0] * old[1]], table[old[0] * old[1] :]
    resized = F.interpolate(offsets.T.unflatten(1, old).unsqueeze(0), new, mode="bilinear", align_corners=False)
    return torch.cat([resized.squeeze(0).flatten(1).T, prefix])


def _offset_index(
    grid: tuple[int, int], num_prefix_tokens: int, device: torch.device | str | None = None
) -> Int[Tensor, "token token"]:
    """Return the row of the table for each query and key: the offset of the query from the key, row by row.

    >>> _offset_index((1, 2), 0).tolist(), _offset_index((1, 1), 1).tolist()
    ([[1, 0], [2, 1]], [[3, 1], [2, 0]])
    """
    rows, columns = grid
    patch = torch.arange(rows * columns, device=device)
    row, column = patch // columns, patch % columns
    row_offset = row.unsqueeze(1) - row + rows - 1
    column_offset = column.unsqueeze(1) - column + columns - 1
    index = row_offset * (2 * columns - 1) + column_offset
    if not num_prefix_tokens:
        return index
    first = (2 * rows - 1) * (2 * columns - 1)
    index = F.pad(index, (num_prefix_tokens, 0, num_prefix_tokens, 0))
    index[:num_prefix_tokens] = first
    index[:, :num_prefix_tokens] = first + 1
    index[:num_prefix_tokens, :num_prefix_tokens] = first + 2
    return index
