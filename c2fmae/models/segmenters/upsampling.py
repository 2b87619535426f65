"""Bilinear resizing of logits, and the class of every pixel without logits of every pixel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor


def upsample_logits(
    logits: Float[Tensor, "batch class rows columns"], size: tuple[int, int]
) -> Float[Tensor, "batch class height width"]:
    """Resize logits bilinearly with `align_corners=False`, in at least float32."""
    return F.interpolate(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), size, mode="bilinear", align_corners=False
    )


def upsample_at(
    logits: Float[Tensor, "class rows columns"],
    size: tuple[int, int],
    pixels: tuple[Int64[Tensor, " cell_rows"], Int64[Tensor, " cell_columns"]],
) -> Float[Tensor, "class cell_rows cell_columns"]:
    """Return the logits that `upsample_logits` gives at some rows and columns of the result, without the others."""
    sampled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for axis, (length, positions) in enumerate(zip(size, pixels, strict=True), start=1):
        stored = sampled.shape[axis]
        if stored == length:
            sampled = sampled.index_select(axis, positions)
            continue
        source = ((positions.to(sampled.dtype) + 0.5) * (stored / length) - 0.5).clamp(min=0, max=stored - 1)
        low = source.long()
        weight = (source - low).view((-1, 1) if axis == 1 else (-1,))
        high = (low + 1).clamp(max=stored - 1)
        sampled = torch.lerp(sampled.index_select(axis, low), sampled.index_select(axis, high), weight)
    return sampled


def upsampled_argmax(
    logits: Float[Tensor, "class rows columns"], size: tuple[int, int], *, at_once: int = 16
) -> UInt8[Tensor, "height width"]:
    """Return the class with the highest upsampled logit of every pixel; of equal ones, the lowest class.

    It equals the argmax of `upsample_logits`, but only `at_once` classes are in memory at full size.

    >>> upsampled_argmax(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]), (1, 4)).tolist()
    [[1, 1, 0, 0]]
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    highest = torch.full(size, -torch.inf, dtype=dtype, device=logits.device)
    ids = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for part, classes in enumerate(logits.contiguous().split(at_once)):
        _update_highest(highest, ids, classes, part * at_once)
    return ids


def _update_highest(
    highest: Float[Tensor, "height width"],
    ids: UInt8[Tensor, "height width"],
    logits: Float[Tensor, "class rows columns"],
    first_class: int,
) -> None:
    """Update the highest logits and their classes in place with further classes, numbered from `first_class`."""
    values, classes = upsample_logits(logits[None], (highest.shape[0], highest.shape[1]))[0].max(dim=0)
    is_higher = values > highest
    torch.where(is_higher, values, highest, out=highest)
    torch.where(is_higher, classes.to(torch.uint8).add_(first_class), ids, out=ids)
