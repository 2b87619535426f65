"""Panoptic quality (PQ), by the rules of panopticapi: of objects without classes, and of things and stuff.

A true and a predicted segment of one class match if their IoU exceeds ½, with unlabelled pixels removed from the union.
So each segment has at most one match. A predicted segment without a match is an error unless more than half of it is
unlabelled. Maps have no crowds: their pixels are unlabelled, for segments of all classes.
"""

from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Integer
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.eval.confusion import invalid_id_error
from c2fmae.eval.maps.objects import is_object
from c2fmae.eval.maps.overlaps import OverlapTable, count_overlaps

NO_SEGMENT = -1
"""The class of what is not a segment: background, or unlabelled pixels."""


class _Row(IntEnum):
    MATCHED_IOU = 0
    MATCHED = 1
    ONLY_PREDICTED = 2
    ONLY_TRUE = 3


PanopticTotals = Float64[Tensor, "*batch 4 class"]
"""The sums of the matched segments' IoU, and the numbers of matched, only predicted and only true segments."""


def count_matched_objects(table: OverlapTable) -> Float64[Tensor, "4 1"]:
    """Return the totals of an image from the overlaps of its true (first) and predicted instance map, all of one class.

    Objects are all ids but 0 and 255. Background is labelled: an object that is predicted there is an error.
    """
    true_classes = np.where(is_object(table.first_ids), 0, NO_SEGMENT)
    predicted_classes = np.where(is_object(table.second_ids), 0, NO_SEGMENT)
    return match_segments(table.counts, true_classes, predicted_classes, table.first_ids == IGNORE, 1)


def count_matched_segments(
    predicted: tuple[Integer[Tensor, "rows columns"], Integer[Tensor, "rows columns"]],
    truth: tuple[Integer[Tensor, "rows columns"], Integer[Tensor, "rows columns"]],
    is_thing: Bool[Tensor, " class"],
) -> Float64[Tensor, "4 class"]:
    """Return the totals of an image from its predicted and true semantic and instance maps."""
    predicted_ids, predicted_classes = combine_maps(*predicted, is_thing)
    true_ids, true_classes = combine_maps(*truth, is_thing)
    table = count_overlaps(true_ids, predicted_ids)
    return match_segments(
        table.counts,
        true_classes[table.first_ids],
        predicted_classes[table.second_ids],
        table.first_ids == 0,
        len(is_thing),
    )


def combine_maps(
    semantic: Integer[Tensor, "rows columns"],
    instance: Integer[Tensor, "rows columns"],
    is_thing: Bool[Tensor, " class"],
) -> tuple[Int64[Tensor, "rows columns"], Int64[np.ndarray, " ids"]]:
    """Return one map of things and stuff, in which 0 is unlabelled, and the class of each of its ids; -1 for 0.

    The class of an object is that of most of its pixels that belong to things. All pixels of a class of stuff that are
    in no object are one segment. Pixels of things outside of objects are unlabelled: they belong to an unknown object.
    """
    table = count_overlaps(instance, semantic)
    num_classes = len(is_thing)
    invalid = table.second_ids[(table.second_ids >= num_classes) & (table.second_ids != IGNORE)]
    if len(invalid):
        raise invalid_id_error(int(invalid[-1]), num_classes)
    is_class = table.second_ids != IGNORE
    is_thing_id = np.zeros(len(is_class), np.bool_)
    is_thing_id[is_class] = is_thing.numpy()[table.second_ids[is_class]]
    thing_counts = table.counts * is_thing_id
    objects = np.flatnonzero(is_object(table.first_ids) & thing_counts.any(axis=1))
    stuff = np.flatnonzero(is_class & ~is_thing_id)
    segments = np.zeros(table.counts.shape, np.int64)  # of each pair of an instance and a semantic id
    segments[:, stuff] = len(objects) + 1 + np.arange(len(stuff))
    segments[objects] = 1 + np.arange(len(objects))[:, None]
    object_classes = table.second_ids[thing_counts[objects].argmax(axis=1)] if len(objects) else objects
    classes = np.concatenate([[NO_SEGMENT], object_classes, table.second_ids[stuff]])
    return torch.from_numpy(np.take(segments, table.pairs)), classes


def match_segments(
    counts: Int64[np.ndarray, "truth predicted"],
    true_classes: Int64[np.ndarray, " truth"],
    predicted_classes: Int64[np.ndarray, " predicted"],
    is_unlabelled: Bool[np.ndarray, " truth"],
    num_classes: int,
) -> Float64[Tensor, "4 class"]:
    """Return the totals of an image from the numbers of pixels that its true and predicted segments share.

    A class of -1 marks what is not a segment; `is_unlabelled` marks the true ones of these that count for nothing.
    """
    unlabelled = counts[is_unlabelled].sum(axis=0)
    areas = counts.sum(axis=0)
    unions = counts.sum(axis=1, keepdims=True) + (areas - unlabelled) - counts
    is_pair = (true_classes[:, None] == predicted_classes) & (true_classes[:, None] >= 0)
    is_match = is_pair & (2 * counts > unions)
    matched_true, matched_predicted = np.nonzero(is_match)
    only_predicted = (predicted_classes >= 0) & ~is_match.any(axis=0) & (2 * unlabelled <= areas)
    only_true = (true_classes >= 0) & ~is_match.any(axis=1)
    ious = counts[matched_true, matched_predicted] / unions[matched_true, matched_predicted]
    totals = torch.zeros(len(_Row), num_classes, dtype=torch.float64)
    for row, classes, values in (
        (_Row.MATCHED_IOU, true_classes[matched_true], ious),
        (_Row.MATCHED, true_classes[matched_true], None),
        (_Row.ONLY_PREDICTED, predicted_classes[only_predicted], None),
        (_Row.ONLY_TRUE, true_classes[only_true], None),
    ):
        totals[row] = torch.from_numpy(np.bincount(classes, values, num_classes))
    return totals


def totals_to_class_qualities(totals: PanopticTotals) -> Float64[Tensor, "*batch 3 class"]:
    """Return the panoptic (PQ), segmentation (SQ) and recognition quality (RQ) of each class.

    NaN for a class without segments; the segmentation quality of a class without a match is 0, as in panopticapi.
    """
    ious, matched, only_predicted, only_true = totals.unbind(dim=-2)
    segments = matched + (only_predicted + only_true) / 2
    segmentation = torch.where(matched > 0, ious / matched, torch.where(segments > 0, 0.0, torch.nan))
    return torch.stack([ious / segments, segmentation, matched / segments], dim=-2)


def totals_to_panoptic_scores(totals: PanopticTotals) -> dict[str, Float64[Tensor, "*batch"]]:
    """Return the means over the classes that have segments, true or predicted."""
    panoptic, segmentation, recognition = totals_to_class_qualities(totals).nanmean(dim=-1).unbind(dim=-1)
    return {
        "panoptic_quality": panoptic,
        "segmentation_quality": segmentation,
        "recognition_quality": recognition,
    }
