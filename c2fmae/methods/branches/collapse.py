"""Measures of collapse: whether the outputs for different images still differ."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def measure_spread(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Return the deviation over images of features of length 1, times √dim: 1 if all differ, 0 if they are equal."""
    deviations = F.normalize(features.detach().float(), dim=1).std(dim=0, correction=0)
    return deviations.mean() * features.shape[1] ** 0.5  # type: ignore[no-any-return]
