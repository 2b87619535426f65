"""Confusion matrices of semantic segmentation, which can be summed over images, and scores computed from them."""

import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE

ConfusionCounts = Int64[Tensor, "*batch truth predicted"] | Float64[Tensor, "*batch truth predicted"]


def confusion_matrices(
    predicted: Integer[Tensor, "image *position"],
    truth: Integer[Tensor, "image *position"],
    num_classes: int,
    *,
    ignore: int = IGNORE,
) -> Int64[Tensor, "image truth predicted"]:
    """Return the confusion matrix of each image, without the positions whose truth is `ignore`.

    >>> confusion_matrices(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2).tolist()
    [[[1, 1], [0, 0]]]
    """
    predicted, truth = predicted.flatten(1).long(), truth.flatten(1).long()
    is_labelled = truth != ignore
    highest = int(torch.where(is_labelled, truth.maximum(predicted), 0).max()) if truth.numel() else 0
    if highest >= num_classes:
        raise UserError(
            f"semantic: expected ids below {num_classes}, the number of classes, got {highest}. Fix the map, or the "
            "classes in dataset.json"
        )
    bins = num_classes**2 + 1  # the last one is for ignored positions
    image = torch.arange(len(truth), device=truth.device)[:, None]
    pair = torch.where(is_labelled, truth * num_classes + predicted, bins - 1) + bins * image
    counts = pair.flatten().bincount(minlength=bins * len(truth)).view(len(truth), bins)
    return counts[:, :-1].reshape(len(truth), num_classes, num_classes)


def class_ious(counts: ConfusionCounts) -> Float64[Tensor, "*batch truth"]:
    """Return the intersection over union of each class; NaN for a class that neither occurs nor is predicted."""
    intersection = counts.diagonal(dim1=-2, dim2=-1)
    union = counts.sum(dim=-2) + counts.sum(dim=-1) - intersection
    return intersection.double() / union


def mean_iou(counts: ConfusionCounts) -> Float64[Tensor, "*batch"]:
    """Return the mean intersection over union of the classes that occur or are predicted."""
    return class_ious(counts).nanmean(dim=-1)


def overall_accuracy(counts: ConfusionCounts) -> Float64[Tensor, "*batch"]:
    """Return the fraction of positions whose class is predicted correctly."""
    return counts.diagonal(dim1=-2, dim2=-1).sum(dim=-1).double() / counts.sum(dim=(-2, -1))
