"""From errors of patches to one number.

A mean is a sum over a count. The counts depend on masks and maps alone, so they can be added over processes and
micro-batches before anything is divided: the loss of many parts is then the loss of one big batch.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from c2fmae.core.specs import LossAveraging


def count_hidden(
    valid: Int[Tensor, "batch patch"], is_masked: Bool[Tensor, "batch patch"], average: LossAveraging = "samples"
) -> Int[Tensor, ""]:
    """Count what the mean is over: images with anything hidden that can be wrong, or all such cells."""
    hidden = (valid * is_masked).sum(dim=1)
    return (hidden > 0).sum() if average == "samples" else hidden.sum()


def sum_hidden_error(
    error: Float[Tensor, "batch patch"],
    valid: Int[Tensor, "batch patch"],
    is_masked: Bool[Tensor, "batch patch"],
    average: LossAveraging = "samples",
) -> Float[Tensor, ""]:
    """Add up the error of hidden patches: each image's mean, as in MAE and MultiMAE, or all cells alike.

    Zero with a live graph where nothing is hidden or nothing can be wrong.
    """
    per_image = torch.where(is_masked, error, 0.0).sum(dim=1)
    if average == "samples":
        per_image = per_image / (valid * is_masked).sum(dim=1).clamp(min=1)
    return per_image.sum()
