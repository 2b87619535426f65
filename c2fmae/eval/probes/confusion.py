"""Which class was found where which one is: all that scores of semantic maps are made of, and it adds up."""

import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE

ConfusionCounts = Int64[Tensor, "*batch truth found"] | Float64[Tensor, "*batch truth found"]


def confusion_matrices(
    predicted: Integer[Tensor, "photo *place"],
    truth: Integer[Tensor, "photo *place"],
    num_classes: int,
    *,
    ignore: int = IGNORE,
) -> Int64[Tensor, "photo truth found"]:
    """Return how many places of each photo are of one class and were found to be of another; not those to ignore.

    >>> confusion_matrices(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2).tolist()
    [[[1, 1], [0, 0]]]
    """
    predicted, truth = predicted.flatten(1).long(), truth.flatten(1).long()
    is_labelled = truth != ignore
    highest = int(torch.where(is_labelled, truth.maximum(predicted), 0).max()) if truth.numel() else 0
    if highest >= num_classes:
        raise UserError(f"semantic: expected ids below {num_classes}, as many as there are classes, found {highest}")
    bins = num_classes**2 + 1  # the last for what is not asked
    photo = torch.arange(len(truth), device=truth.device)[:, None]
    pair = torch.where(is_labelled, truth * num_classes + predicted, bins - 1) + bins * photo
    counts = pair.flatten().bincount(minlength=bins * len(truth)).view(len(truth), bins)
    return counts[:, :-1].reshape(len(truth), num_classes, num_classes)


def class_ious(counts: ConfusionCounts) -> Float64[Tensor, "*batch truth"]:
    """Return the intersection over union of each class; not a number for one that is neither there nor found."""
    intersection = counts.diagonal(dim1=-2, dim2=-1)
    union = counts.sum(dim=-2) + counts.sum(dim=-1) - intersection
    return intersection.double() / union


def mean_iou(counts: ConfusionCounts) -> Float64[Tensor, "*batch"]:
    """Return the mean of the intersection over union, of the classes that are there or were said to be."""
    return class_ious(counts).nanmean(dim=-1)


def overall_accuracy(counts: ConfusionCounts) -> Float64[Tensor, "*batch"]:
    """Return the share of places whose class was found."""
    return counts.diagonal(dim1=-2, dim2=-1).sum(dim=-1).double() / counts.sum(dim=(-2, -1))
