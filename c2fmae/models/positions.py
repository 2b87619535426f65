"""Position embeddings, which are added to tokens."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_positions(
    grid: tuple[int, int],
    dim: int,
    *,
    trained_grid: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "patch {dim}"]:
    """Return the position embeddings of MAE: sines and cosines of the column, then of the row.

    With `trained_grid`, the rows and columns of patches of the training images, positions are stretched from that grid:
    a patch gets the sines and cosines of its place in the image. Without it they are those of a model that is trained
    on this grid.

    >>> sincos_positions((1, 2), 4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.8414709568023682, 0.5403022766113281, 0.0, 1.0]]
    >>> torch.equal(sincos_positions((3, 3), 4, trained_grid=(1, 1))[4:5], sincos_positions((1, 1), 4))
    True
    """
    if dim % 4:
        raise ValueError(f"dim: expected a multiple of 4 for sine and cosine positions, got {dim}")
    quarter = torch.arange(dim // 4, dtype=torch.float64, device=device)
    frequency = 10_000 ** (-quarter / (dim // 4))

    def encode_axis(cells: int, trained_cells: int) -> Tensor:
        # At the grid of training the centres are whole numbers, without rounding errors.
        centre = (torch.arange(cells, dtype=torch.float64, device=device) + 0.5) * (trained_cells / cells) - 0.5
        angle = centre.unsqueeze(1) * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1).float()

    (rows, columns), (trained_rows, trained_columns) = grid, trained_grid or grid
    column = encode_axis(columns, trained_columns).unsqueeze(0).expand(rows, -1, -1)
    row = encode_axis(rows, trained_rows).unsqueeze(1).expand(-1, columns, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1)


def cached_sincos_positions(
    grid: tuple[int, int], dim: int, *, trained_grid: tuple[int, int] | None = None, device: torch.device
) -> Float[Tensor, "patch {dim}"]:
    """Return `sincos_positions`, which are computed once for a grid and device. Do not change them in place.

    A table that is made while tensors are traced, or in inference mode, is not stored: training cannot use it.
    """
    if torch.compiler.is_compiling():
        return sincos_positions(grid, dim, trained_grid=trained_grid, device=device)
    probe = torch.empty(0, device=device)  # shows what tensors are now
    is_plain = type(probe) is Tensor and not probe.is_inference()
    compute = _stored_positions if is_plain else sincos_positions
    return compute(grid, dim, trained_grid=trained_grid, device=probe.device)


_stored_positions = lru_cache(maxsize=8)(sincos_positions)
