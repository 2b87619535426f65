"""Agreement of semantic maps: of named classes, and of clusters that a labeller does not name.

Pixels whose truth is unlabelled do not count. Those without a predicted class are errors, so a labeller gains nothing
by leaving out what is difficult.
"""

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.eval.confusion import ClassTotals, ConfusionCounts, class_totals, confusion_matrices
from c2fmae.eval.maps.assignment import assign_rows

UNASSIGNED = -1
"""The class of a cluster that is assigned to none."""


def count_classes(
    predicted: Integer[Tensor, "image *position"],
    truth: Integer[Tensor, "image *position"],
    num_classes: int,
    num_predicted: int,
) -> Int64[Tensor, "image truth predicted"]:
    """Return the confusion matrix of each image; its last column, beyond `num_predicted`, counts unlabelled pixels.

    The predicted ids are classes or clusters.

    >>> count_classes(torch.tensor([[0, 4, 255, 255]]), torch.tensor([[0, 0, 1, 255]]), 2, 5).tolist()
    [[[1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]]
    """
    size = max(num_classes, num_predicted + 1)
    counts = confusion_matrices(predicted.where(predicted != IGNORE, num_predicted), truth, size)
    return counts[:, :num_classes, : num_predicted + 1].contiguous()


def count_named_classes(
    predicted: Integer[Tensor, "image *position"], truth: Integer[Tensor, "image *position"], num_classes: int
) -> ClassTotals:
    """Return, of each image and class, the positions that are predicted correctly, the true and the predicted ones."""
    return totals_of_assignment(count_classes(predicted, truth, num_classes, num_classes), torch.arange(num_classes))


def totals_of_assignment(counts: ConfusionCounts, classes: Int64[Tensor, " cluster"]) -> ClassTotals:
    """Return the totals of each class where each cluster predicts the class that it is assigned to.

    `counts` are those of `count_classes`, of single images or of all.
    """
    num_classes, num_clusters = counts.shape[-2], len(classes)
    assigned = (classes[:, None] == torch.arange(num_classes)).to(counts.dtype)  # cluster × class
    by_class = counts[..., :num_clusters] @ assigned
    totals = class_totals(by_class)
    totals[..., 1, :] = counts.sum(dim=-1)  # with pixels that are not predicted as any class
    return totals


def assign_majority(counts: ConfusionCounts) -> Int64[Tensor, " cluster"]:
    """Return the class of most of each cluster's pixels, the lowest of several; -1 for one without labelled pixels.

    The more clusters there are, the higher is the score: it is an upper limit of what names could reach.
    """
    clusters = counts[:, :-1]
    return clusters.argmax(dim=0).where(clusters.sum(dim=0) > 0, UNASSIGNED)


def assign_one_to_one(counts: ConfusionCounts) -> Int64[Tensor, " cluster"]:
    """Return the assignment of clusters to classes, at most one to each, with the highest mean IoU; -1 without a class.

    The IoU of a class depends on its own cluster only, so the Hungarian method finds the highest mean.
    """
    clusters = counts[:, :-1].double()
    unions = counts.sum(dim=1, keepdim=True) + clusters.sum(dim=0) - clusters
    ious = torch.where(unions > 0, clusters / unions, 0.0)
    return _transpose_assignment(assign_rows(ious.numpy()), ious)


def _transpose_assignment(
    columns: Int64[np.ndarray, " class"], ious: Float64[Tensor, "class cluster"]
) -> Int64[Tensor, " cluster"]:
    """Return the class of each cluster from the cluster of each class, without pairs that do not overlap."""
    classes = torch.full((ious.shape[1],), UNASSIGNED)
    for number, column in enumerate(columns.tolist()):
        if column >= 0 and ious[number, column] > 0:
            classes[column] = number
    return classes
