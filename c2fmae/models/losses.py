"""Averages of patch errors over hidden patches.

A mean is a sum divided by a count. Counts depend only on masks and maps, so they are summed over ranks and
micro-batches before any division: the losses of the parts then add up to the loss of the global batch.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from c2fmae.core.specs import LossAveraging


def count_hidden(
    valid: Int[Tensor, "batch patch"], is_masked: Bool[Tensor, "batch patch"], average: LossAveraging = "samples"
) -> Int[Tensor, ""]:
    """Return the denominator of the mean: images with valid hidden cells, or the number of such cells."""
    hidden = (valid * is_masked).sum(dim=1)
    return (hidden > 0).sum() if average == "samples" else hidden.sum()


def sum_hidden_error(
    error: Float[Tensor, "batch patch"],
    valid: Int[Tensor, "batch patch"],
    is_masked: Bool[Tensor, "batch patch"],
    average: LossAveraging = "samples",
) -> Float[Tensor, ""]:
    """Return the numerator of the mean: the sum of the images' means (MAE, MultiMAE), or of all hidden cells' errors.

    Without hidden patches or valid cells it is zero and still differentiable.
    """
    per_image = torch.where(is_masked, error, 0.0).sum(dim=1)
    if average == "samples":
        per_image = per_image / (valid * is_masked).sum(dim=1).clamp(min=1)
    return per_image.sum()
