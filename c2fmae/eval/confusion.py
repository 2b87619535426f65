"""Confusion matrices of semantic segmentation, which can be summed over images, and scores computed from them."""

import torch
from jaxtyping import Float64, Int64, Integer, UInt8
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE

_NUM_BYTES = 256  # pairs of bytes are counted: no position has to be left out before

ConfusionCounts = Int64[Tensor, "*batch truth predicted"] | Float64[Tensor, "*batch truth predicted"]
ClassTotals = Int64[Tensor, "*batch 3 class"] | Float64[Tensor, "*batch 3 class"]


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
    predicted, truth = (_to_bytes(ids.flatten(1), num_classes) for ids in (predicted, truth))
    num_images, num_pairs = len(truth), _NUM_BYTES**2
    first_bins = num_pairs * torch.arange(num_images, dtype=torch.int32, device=truth.device)
    bins = truth.int().mul_(_NUM_BYTES).add_(predicted).add_(first_bins[:, None])
    counts = bins.flatten().bincount(minlength=num_pairs * num_images).view(num_images, _NUM_BYTES, _NUM_BYTES)
    counts[:, ignore] = 0
    is_invalid = torch.stack([counts[:, num_classes:].any(), counts[:, :, num_classes:].any()])
    if is_invalid.any():
        pairs = counts.sum(dim=0).nonzero()
        raise invalid_id_error(int(pairs.max()), num_classes)
    return counts[:, :num_classes, :num_classes].contiguous()


def _to_bytes(ids: Integer[Tensor, "image position"], num_classes: int) -> UInt8[Tensor, "image position"]:
    if ids.dtype == torch.uint8 or not ids.numel():
        return ids.to(torch.uint8)
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= _NUM_BYTES:
        raise invalid_id_error(low if low < 0 else high, num_classes)
    return ids.to(torch.uint8)


def invalid_id_error(class_id: int, num_classes: int) -> UserError:
    """Return the error of a map with an id that is not that of a class."""
    return UserError(
        f"semantic: expected ids below {num_classes}, the number of classes, got {class_id}. Fix the map, or the "
        "classes in dataset.json"
    )


def class_totals(counts: ConfusionCounts) -> ClassTotals:
    """Return, of each class, the positions that are predicted correctly, the true and the predicted ones.

    All scores are functions of these, which are much smaller than confusion matrices of many classes.
    """
    return torch.stack([counts.diagonal(dim1=-2, dim2=-1), counts.sum(dim=-1), counts.sum(dim=-2)], dim=-2)


def totals_to_ious(totals: ClassTotals) -> Float64[Tensor, "*batch class"]:
    """Return the intersection over union of each class; NaN for a class that neither occurs nor is predicted."""
    correct, true, predicted = totals.unbind(dim=-2)
    return correct.double() / (true + predicted - correct)


def totals_to_accuracies(totals: ClassTotals) -> Float64[Tensor, "*batch class"]:
    """Return the fraction of each class's positions that are predicted correctly; NaN for a class without positions."""
    correct, true, _ = totals.unbind(dim=-2)
    return correct.double() / true


def totals_to_overall_accuracy(totals: ClassTotals) -> Float64[Tensor, "*batch"]:
    """Return the fraction of positions whose class is predicted correctly."""
    correct, true, _ = totals.unbind(dim=-2)
    return correct.sum(dim=-1).double() / true.sum(dim=-1)


def class_ious(counts: ConfusionCounts) -> Float64[Tensor, "*batch truth"]:
    """Return the intersection over union of each class; NaN for a class that neither occurs nor is predicted."""
    return totals_to_ious(class_totals(counts))


def mean_iou(counts: ConfusionCounts) -> Float64[Tensor, "*batch"]:
    """Return the mean intersection over union of the classes that occur or are predicted."""
    return class_ious(counts).nanmean(dim=-1)


def overall_accuracy(counts: ConfusionCounts) -> Float64[Tensor, "*batch"]:
    """Return the fraction of positions whose class is predicted correctly."""
    return totals_to_overall_accuracy(class_totals(counts))
