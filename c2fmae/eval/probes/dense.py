"""Dense probes: which class each patch shows."""

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor


class DenseScores(NamedTuple):
    """How well patches were told apart."""

    miou: float
    """The mean, over the classes that are there or were said to be, of intersection over union."""
    accuracy: float


def score_patches(found: Int64[Tensor, " patch"], truth: Int64[Tensor, " patch"]) -> DenseScores:
    """Compare the classes of patches.

    >>> score_patches(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]))
    DenseScores(miou=0.5833333333333333, accuracy=0.75)
    """
    num_classes = int(torch.cat([found, truth]).max()) + 1
    both = torch.bincount(truth * num_classes + found, minlength=num_classes**2).view(num_classes, num_classes)
    right = both.diagonal()
    union = both.sum(0) + both.sum(1) - right
    is_there = union > 0
    miou = (right[is_there].double() / union[is_there]).mean()
    return DenseScores(miou.item(), right.sum().item() / len(truth))
