"""Bilinear resizing of logits, and the class of every pixel without logits of every pixel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def upsample_logits(
    logits: Float[Tensor, "batch class rows columns"], size: tuple[int, int]
) -> Float[Tensor, "batch class height width"]:
    """Resize logits bilinearly with `align_corners=False`, in at least float32."""
    return F.interpolate(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), size, mode="bilinear", align_corners=False
    )


def upsampled_argmax(
    logits: Float[Tensor, "class rows columns"], size: tuple[int, int], *, at_once: int = 16
) -> UInt8[Tensor, "height width"]:
    """Return the class with the highest upsampled logit of every pixel; of equal ones, the lowest class.

    It equals the argmax of `upsample_logits`, but only `at_once` classes are in memory at full size.

    >>> upsampled_argmax(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]), (1, 4)).tolist()
    [[1, 1, 0, 0]]
    """
    highest, ids = None, torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first, part in enumerate(logits.contiguous().split(at_once)):
        values, classes = upsample_logits(part[None], size)[0].max(dim=0)
        if highest is None:
            highest, ids = values, classes.to(torch.uint8)
            continue
        is_higher = values > highest
        torch.where(is_higher, values, highest, out=highest)
        torch.where(is_higher, (classes + first * at_once).to(torch.uint8), ids, out=ids)
    return ids
