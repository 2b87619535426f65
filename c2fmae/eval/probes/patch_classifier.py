"""Dense probes: which class each patch shows."""

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.eval.probes.confusion import confusion_matrices, mean_iou, overall_accuracy


class PatchScores(NamedTuple):
    """How well patches were told apart."""

    miou: float
    """The mean, over the classes that are there or were said to be, of intersection over union."""
    accuracy: float


def score_patches(predicted: Int64[Tensor, " patch"], truth: Int64[Tensor, " patch"]) -> PatchScores:
    """Compare the classes of patches.

    >>> score_patches(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]))
    PatchScores(miou=0.5833333333333333, accuracy=0.75)
    """
    num_classes = int(torch.cat([predicted, truth]).max()) + 1
    (counts,) = confusion_matrices(predicted[None], truth[None], num_classes, ignore=-1)
    return PatchScores(mean_iou(counts).item(), overall_accuracy(counts).item())
