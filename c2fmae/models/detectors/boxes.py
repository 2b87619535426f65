"""Decoding and clipping of the boxes of a batch."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder


def decode_boxes(
    deltas: Float[Tensor, "*shape 4"], boxes: Float[Tensor, "*shape 4"], coder: BoxCoder
) -> Float[Tensor, "*shape 4"]:
    """Return boxes that are moved and scaled by their deltas."""
    decoded: Tensor = coder.decode_single(deltas.reshape(-1, 4), boxes.reshape(-1, 4))
    return decoded.view(deltas.shape)


def clip_boxes(boxes: Float[Tensor, "image box 4"], sizes: Int64[Tensor, "image 2"]) -> Float[Tensor, "image box 4"]:
    """Return boxes that are clipped to the height and width of their images."""
    limits = sizes.flip(1).repeat(1, 2).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limits[:, None])


def promote(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return a tensor of at least single precision, in which boxes are exact to a fraction of a pixel."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
