"""Position embeddings, which are added to tokens."""

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_positions(
    grid: tuple[int, int], dim: int, *, device: torch.device | str | None = None
) -> Float[Tensor, "patch {dim}"]:
    """Return the position embeddings of MAE: sines and cosines of the column, then of the row.

    >>> sincos_positions((1, 2), 4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.8414709568023682, 0.5403022766113281, 0.0, 1.0]]
    """
    if dim % 4:
        raise ValueError(f"dim: expected a multiple of 4 for sine and cosine positions, got {dim}")
    quarter = torch.arange(dim // 4, dtype=torch.float64, device=device)
    frequency = 10_000 ** (-quarter / (dim // 4))

    def encode_axis(cells: int) -> Tensor:
        angle = torch.arange(cells, dtype=torch.float64, device=device).unsqueeze(1) * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1).float()

    rows, columns = grid
    column = encode_axis(columns).unsqueeze(0).expand(rows, -1, -1)
    row = encode_axis(rows).unsqueeze(1).expand(-1, columns, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1)
