"""Dense probes: which class each patch shows."""

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.eval.probes.confusion import confusion, mean_iou, share_right


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
    (counts,) = confusion(found[None], truth[None], num_classes, ignore=-1)
    return DenseScores(mean_iou(counts).item(), share_right(counts).item())
