"""Scores of instance maps by the best overlap of each true object: without classes, and without matching one to one."""

from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.eval.maps.overlaps import OverlapTable


class _Row(IntEnum):
    IMAGES = 0
    TRUE_OBJECTS = 1
    PREDICTED_OBJECTS = 2
    BEST_IOU = 3
    RECALLED_50 = 4
    RECALLED_75 = 5
    TRUE_AREA = 6
    COVERED_AREA = 7


ObjectTotals = Float64[Tensor, "*batch 8"]
"""The sums from which `totals_to_object_scores` computes scores."""


def count_objects(table: OverlapTable) -> Float64[Tensor, "8"]:
    """Return the totals of an image from the overlaps of its true (first) and predicted instance map.

    Objects are all ids but 0 and 255. Pixels whose truth is unlabelled belong to no predicted object; one that is
    elsewhere counts as an object all the same.
    """
    is_true, is_predicted = is_object(table.first_ids), is_object(table.second_ids)
    areas = table.counts[is_true].sum(axis=1)
    best_ious = compute_ious(table)[is_true][:, is_predicted].max(axis=1, initial=0.0)
    totals = [  # in the order of the rows
        1,
        len(areas),
        np.count_nonzero(is_predicted),
        best_ious.sum(),
        np.count_nonzero(best_ious >= 0.5),
        np.count_nonzero(best_ious >= 0.75),
        areas.sum(),
        areas @ best_ious,
    ]
    return torch.tensor(totals, dtype=torch.float64)


def totals_to_object_scores(totals: ObjectTotals) -> dict[str, Float64[Tensor, "*batch"]]:
    """Return the scores of summed totals, in [0, 1], and the number of objects per image.

    `average_best_overlap` is the mean over true objects of the highest IoU of any predicted one, `covering` the same
    mean weighted by area, and recall the fraction of true objects whose highest IoU is at least ½ or ¾. They are NaN
    without true objects.
    """
    rows = totals.unbind(dim=-1)
    return {
        "average_best_overlap": rows[_Row.BEST_IOU] / rows[_Row.TRUE_OBJECTS],
        "recall_50": rows[_Row.RECALLED_50] / rows[_Row.TRUE_OBJECTS],
        "recall_75": rows[_Row.RECALLED_75] / rows[_Row.TRUE_OBJECTS],
        "covering": rows[_Row.COVERED_AREA] / rows[_Row.TRUE_AREA],
        "true_objects_per_image": rows[_Row.TRUE_OBJECTS] / rows[_Row.IMAGES],
        "predicted_objects_per_image": rows[_Row.PREDICTED_OBJECTS] / rows[_Row.IMAGES],
    }


def is_object(ids: Int64[np.ndarray, " ids"]) -> Bool[np.ndarray, " ids"]:
    """Return which ids of an instance map are objects: neither background nor unlabelled."""
    result: Bool[np.ndarray, " ids"] = (ids != 0) & (ids != IGNORE)
    return result


def compute_ious(table: OverlapTable) -> Float64[np.ndarray, "first second"]:
    """Return the IoU of each true (first) and predicted id, without the pixels whose truth is unlabelled."""
    labelled = table.counts * (table.first_ids != IGNORE)[:, None]
    unions = labelled.sum(axis=1, keepdims=True) + labelled.sum(axis=0) - labelled
    ious: Float64[np.ndarray, "first second"] = labelled / np.maximum(unions, 1)
    return ious
