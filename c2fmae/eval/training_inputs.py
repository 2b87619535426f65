"""Inputs of models that train on padded images."""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from c2fmae.models.backbones import Backbone


def standardise_batch(
    backbone: Backbone, images: UInt8[Tensor, "batch channels height width"], sizes: Int64[Tensor, "batch 2"]
) -> Float[Tensor, "batch channels height width"]:
    """Return standardised images, in which pixels beyond an image's size are 0, the mean colour."""
    standardised = backbone.standardise(images).to(next(backbone.parameters()).dtype)
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    heights, widths = sizes[:, 0, None, None], sizes[:, 1, None, None]
    is_inside = (rows[:, None] < heights) & (columns < widths)
    return standardised * is_inside.unsqueeze(1).to(standardised.dtype)
