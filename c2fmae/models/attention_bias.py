"""Attention with something added to the products of queries and keys."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ALIGNMENT = 8  # of the dimension of a head, for fused kernels in bfloat16


class AxisOffsets(NamedTuple):
    """Embeddings of the offset between the rows, and between the columns, of a query and a key.

    The product of the query with both is added to its product with the key.
    """

    rows: Float[Tensor, "row row head_dim"]
    columns: Float[Tensor, "column column head_dim"]


AttentionBias = Float[Tensor, "1 _ _ _"] | AxisOffsets
"""What a block adds to the products of its queries and keys: a number for each [1, head, query, key], or offsets."""


def attend(
    attn: Any, x: Float[Tensor, "batch token dim"], bias: AttentionBias | None = None
) -> Float[Tensor, "batch token dim"]:
    """Return the output of timm's attention with a bias."""
    if isinstance(bias, AxisOffsets):
        return _attend_with_offsets(attn, x, bias)
    return attn(x) if bias is None else attn(x, bias)  # type: ignore[no-any-return]


def crop_bias(bias: AttentionBias, window: tuple[int, int], rows: int, columns: int) -> AttentionBias:
    """Return the bias of the first rows and columns of patches of a window, between which offsets are the same."""
    if isinstance(bias, AxisOffsets):
        return AxisOffsets(bias.rows[:rows, :rows], bias.columns[:columns, :columns])
    tiles = bias.unflatten(3, window).unflatten(2, window)
    return tiles[:, :, :rows, :columns, :rows, :columns].flatten(4).flatten(2, 3)  # type: ignore[no-any-return]


def _attend_with_offsets(
    attn: Any, x: Float[Tensor, "batch token dim"], offsets: AxisOffsets
) -> Float[Tensor, "batch token dim"]:
    """Return the output of attention whose queries and keys are longer by the rows and columns of the grid.

    A query has the products with the embeddings of its offsets there, a key has ones at its own row and column. So the
    sum is that of detectron2, without a matrix of all pairs of tokens. Tokens before the patches have no offsets.
    """
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    rows, columns = len(offsets.rows), len(offsets.columns)
    num_prefix_tokens = x.shape[1] - rows * columns
    patches = q[:, :, num_prefix_tokens:].unflatten(2, (rows, columns))
    by_row = torch.einsum("bhrcd,rkd->bhrck", patches, offsets.rows)
    by_column = torch.einsum("bhrcd,ckd->bhrck", patches, offsets.columns)
    products = torch.cat([by_row, by_column], dim=4).flatten(2, 3)
    padding = (0, -(q.shape[3] + rows + columns) % _ALIGNMENT, num_prefix_tokens, 0)
    indicators = F.pad(_indicate_axes(rows, columns, q.device).to(q.dtype), padding)
    q = torch.cat([q * attn.scale, F.pad(products, padding)], dim=3)
    k = torch.cat([k, indicators.expand(*k.shape[:2], -1, -1)], dim=3)
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        v = F.pad(v, (0, q.shape[3] - attn.head_dim))  # kernels without a matrix of all pairs need equal dimensions
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=1.0)
        y = y[..., : attn.head_dim]
    else:
        y = attn.attn_drop((q @ k.transpose(2, 3)).softmax(dim=3)) @ v
    return attn.proj_drop(attn.proj(attn.norm(y.transpose(1, 2).flatten(2))))  # type: ignore[no-any-return]


def _indicate_axes(
    rows: int, columns: int, device: torch.device | str | None = None
) -> Float[Tensor, "{rows}*{columns} {rows}+{columns}"]:
    """Return ones at the row and the column of each patch.

    >>> _indicate_axes(1, 2).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    row = torch.eye(rows, device=device).repeat_interleave(columns, dim=0)
    return torch.cat([row, torch.eye(columns, device=device).repeat(rows, 1)], dim=1)
