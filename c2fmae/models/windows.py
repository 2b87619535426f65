"""Attention within windows of patches, computed with unmodified blocks of a plain ViT."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.models.attention_bias import AttentionBias, AxisOffsets, attend, crop_bias

Window = tuple[int, int]
"""Rows and columns of patches."""


def partition(
    x: Float[Tensor, "batch rows columns dim"], window: Window
) -> Float[Tensor, "windows {window[0]*window[1]} dim"]:
    """Return the patches of each window, image by image and row by row.

    Incomplete windows at the bottom and on the right are filled with zeros.

    >>> partition(torch.arange(1.0, 4).view(1, 1, 3, 1), (1, 2)).flatten(1).tolist()
    [[1.0, 2.0], [3.0, 0.0]]
    """
    missing_rows, missing_columns = -x.shape[1] % window[0], -x.shape[2] % window[1]
    if missing_rows or missing_columns:
        x = F.pad(x, (0, 0, 0, missing_columns, 0, missing_rows))
    tiles = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return tiles.transpose(2, 3).flatten(0, 2).flatten(1, 2)  # type: ignore[no-any-return]


def unpartition(
    windows: Float[Tensor, "windows {window[0]*window[1]} dim"], grid: tuple[int, int], window: Window
) -> Float[Tensor, "batch {grid[0]} {grid[1]} dim"]:
    """Invert `partition` for a grid of patches: return its patches without the zeros that filled windows."""
    down, across = -(-grid[0] // window[0]), -(-grid[1] // window[1])
    tiles = windows.unflatten(1, window).unflatten(0, (-1, down, across)).transpose(2, 3)
    return tiles.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]]  # type: ignore[no-any-return]


def run_block(
    block: nn.Module,
    x: Float[Tensor, "batch token dim"],
    bias: AttentionBias | None = None,
    *,
    grid: tuple[int, int] | None = None,
    window: Window | None = None,
    mask_padding: bool = False,
) -> Float[Tensor, "batch token dim"]:
    """Return the output of a block for all tokens, or for the patches of a grid that attend within windows.

    `bias` is for the tokens that attend to each other. Only attention is divided into windows: stochastic depth drops
    it for whole images. The zeros that fill windows are keys like any others, as in detectron2, unless `mask_padding`.
    """
    if window is None and not isinstance(bias, AxisOffsets):
        return block(x) if bias is None else block(x, bias)  # type: ignore[no-any-return]
    plain: Any = block
    check_plain_blocks([block])
    y = plain.norm1(x)
    if window is None or grid is None:
        y = attend(plain.attn, y, bias)
    else:
        attend_in_windows = _attend_without_padding if mask_padding else _attend_with_padding
        y = attend_in_windows(plain.attn, y.unflatten(1, grid), window, bias).flatten(1, 2)
    x = x + plain.drop_path1(plain.ls1(y))
    return x + plain.drop_path2(plain.ls2(plain.mlp(plain.norm2(x))))  # type: ignore[no-any-return]


def _attend_with_padding(
    attn: Any, x: Float[Tensor, "batch rows columns dim"], window: Window, bias: AttentionBias | None
) -> Float[Tensor, "batch rows columns dim"]:
    """Return the output of attention in windows; the zeros that fill incomplete ones are keys like any others."""
    return unpartition(attend(attn, partition(x, window), bias), (x.shape[1], x.shape[2]), window)


def _attend_without_padding(
    attn: Any, x: Float[Tensor, "batch rows columns dim"], window: Window, bias: AttentionBias | None
) -> Float[Tensor, "batch rows columns dim"]:
    """Return the output of attention in windows, of which incomplete ones are smaller instead of filled.

    Complete windows and those at the bottom, on the right and in the corner are attended to one after the other. So
    there are no keys to mask, and a bias is not repeated for all windows.
    """
    strips = []
    for strip in x.split(_split_complete(x.shape[1], window[0]), dim=1):
        parts = []
        for part in strip.split(_split_complete(x.shape[2], window[1]), dim=2):
            rows, columns = min(window[0], part.shape[1]), min(window[1], part.shape[2])
            part_bias = None if bias is None else crop_bias(bias, window, rows, columns)
            parts.append(_attend_with_padding(attn, part, (rows, columns), part_bias))
        strips.append(torch.cat(parts, dim=2))
    return torch.cat(strips, dim=1)


def _split_complete(length: int, side: int) -> list[int]:
    """Return how much of a length complete windows cover, and the rest.

    >>> _split_complete(10, 4), _split_complete(8, 4), _split_complete(3, 4)
    ([8, 2], [8], [3])
    """
    rest = length % side
    return [part for part in (length - rest, rest) if part]


def check_plain_blocks(blocks: Iterable[nn.Module]) -> None:
    """Raise a `UserError` if a block computes something else than timm's plain block with plain attention."""
    for block in blocks:
        part = block.attn if type(block) is Block else block
        if type(part) is not Attention:
            raise UserError(
                f"windows, relative: the ViT has blocks with {type(part).__name__}, expected timm's Block with "
                "Attention. Use a plain ViT such as vit_base_patch16_224, or leave these settings out"
            )
