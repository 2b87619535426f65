"""Detections matched with objects: by COCO's rule for AP, and one by one for confusions and kinds of errors.

COCO's tools do not return the matches in a common form. Here they are computed from the IoUs of the engine, so that AP
of bootstrap samples needs no second evaluation: with a weight of 1 for every image it is the engine's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from c2fmae.eval.detection.engines import MAX_DETECTIONS, NUM_IOUS, NUM_RECALLS, CocoDict, CocoEvaluation, CocoResults

IOU_THRESHOLDS: Float64[np.ndarray, " iou"] = np.linspace(0.5, 0.95, NUM_IOUS)
_RECALLS = np.linspace(0.0, 1.0, NUM_RECALLS)
_LOWEST_IOU = 0.1  # of a detection that is badly placed rather than in the background, as in TIDE

ERROR_KINDS = ("wrong class", "badly placed", "wrong class, badly placed", "duplicate", "background")
"""Kinds of detections that are errors, in the order of their numbers from 1; 0 is a correct detection."""
CORRECT, WRONG_CLASS, BADLY_PLACED, WRONG_AND_BADLY_PLACED, DUPLICATE, BACKGROUND = range(6)
IN_CROWD = -1
"""The number of a detection inside a crowd, which does not count."""


class ClassMatches(NamedTuple):
    """The detections of a class in all images, by descending score, and its objects."""

    images: Int[np.ndarray, " detection"]
    """Index of the image of each detection."""
    is_match: Bool[np.ndarray, "iou detection"]
    """Whether it matches an object at each IoU threshold."""
    is_ignored: Bool[np.ndarray, "iou detection"]
    """Whether it matches a crowd."""
    object_images: Int[np.ndarray, " object"]
    """Index of the image of each object that is no crowd."""


def match_classes(truth: CocoDict, results: CocoResults, evaluation: CocoEvaluation) -> list[ClassMatches]:
    """Return the matches of each class, in the order of ascending category ids; images in that of their ids."""
    image_ids = np.sort([image["id"] for image in truth["images"]])
    category_ids = np.sort([category["id"] for category in truth["categories"]])
    crowds: dict[tuple[int, int], list[bool]] = {}
    for annotation in truth["annotations"]:
        pair = (annotation["category_id"], annotation["image_id"])
        crowds.setdefault(pair, []).append(bool(annotation["iscrowd"]))
    pairs = np.array([(result["category_id"], result["image_id"]) for result in results], np.int64).reshape(-1, 2)
    scores = np.array([result["score"] for result in results], np.float64)
    order = np.lexsort((-scores, pairs[:, 1], pairs[:, 0]))
    pairs, scores = pairs[order], scores[order]
    first = np.flatnonzero(np.diff(pairs, axis=0, prepend=-1).any(axis=1))  # of each class in an image
    rank = np.arange(len(pairs)) - np.repeat(first, np.diff(first, append=len(pairs)))
    pairs, scores = pairs[rank < MAX_DETECTIONS[-1]], scores[rank < MAX_DETECTIONS[-1]]
    is_match, is_ignored = (np.zeros((NUM_IOUS, len(pairs)), bool) for _ in range(2))
    for start in np.flatnonzero(np.diff(pairs, axis=0, prepend=-1).any(axis=1)).tolist():
        category_id, image_id = pairs[start].tolist()
        is_crowd = np.array(crowds.get((category_id, image_id), []), bool)
        if len(is_crowd):
            ious = np.asarray(evaluation.ious[image_id, category_id], np.float64)
            rows = slice(start, start + len(ious))
            is_match[:, rows], is_ignored[:, rows] = match_detections(ious, is_crowd)
    objects = [(*pair, is_crowd.count(False)) for pair, is_crowd in sorted(crowds.items())]
    return [
        _select_class(category_id, image_ids, pairs, scores, is_match, is_ignored, objects)
        for category_id in category_ids.tolist()
    ]


def _select_class(
    category_id: int,
    image_ids: Int64[np.ndarray, " image"],
    pairs: Int64[np.ndarray, "detection 2"],
    scores: Float64[np.ndarray, " detection"],
    is_match: Bool[np.ndarray, "iou detection"],
    is_ignored: Bool[np.ndarray, "iou detection"],
    objects: Sequence[tuple[int, int, int]],
) -> ClassMatches:
    """Return the matches of a class; `objects` are category id, image id and number."""
    rows = slice(*np.searchsorted(pairs[:, 0], (category_id, category_id + 1)).tolist())
    order = np.argsort(-scores[rows], kind="stable")
    images = [image_id for category, image_id, count in objects if category == category_id for _ in range(count)]
    return ClassMatches(
        np.searchsorted(image_ids, pairs[rows, 1])[order],
        is_match[:, rows][:, order],
        is_ignored[:, rows][:, order],
        np.searchsorted(image_ids, np.array(images, np.int64)),
    )


def match_detections(
    ious: Float64[np.ndarray, "detection object"], is_crowd: Bool[np.ndarray, " object"]
) -> tuple[Bool[np.ndarray, "iou detection"], Bool[np.ndarray, "iou detection"]]:
    """Return which detections match an object at each threshold, and which match a crowd, by COCO's rule.

    In the order of scores, each takes the object with the highest IoU that is not taken yet, the last of equal ones;
    if there is none, a crowd, which any number can take.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    object_ious, crowd_ious = ious[:, ~is_crowd], ious[:, is_crowd]
    is_match = np.zeros((NUM_IOUS, len(ious)), bool)
    is_taken = np.zeros((NUM_IOUS, object_ious.shape[1]), bool)
    last_object = object_ious.shape[1] - 1
    rows = np.arange(NUM_IOUS)
    for detection in np.flatnonzero((object_ious >= thresholds[0]).any(axis=1)):
        free_ious = np.where(is_taken | (object_ious[detection] < thresholds), -1.0, object_ious[detection])
        best = last_object - free_ious[:, ::-1].argmax(axis=1)
        found = free_ious[rows, best] >= 0
        is_match[found, detection] = True
        is_taken[found, best[found]] = True
    in_crowd = (crowd_ious[None] >= thresholds[:, :, None]).any(axis=2)
    return is_match, in_crowd & ~is_match


def average_precision(
    matches: ClassMatches, weights: Float64[np.ndarray, "image replicate"]
) -> Float64[np.ndarray, "iou replicate"]:
    """Return AP at each IoU threshold if every image counts as often as its weight; NaN where no object counts.

    Precision and recall only have to be known at the matches: in between, recall is constant and precision falls.
    """
    num_replicates = weights.shape[1]
    num_objects = weights[matches.object_images].sum(axis=0)
    num_detections = weights[matches.images].cumsum(axis=0)
    result = np.zeros((NUM_IOUS, num_replicates))
    with np.errstate(invalid="ignore", divide="ignore"):
        for iou, (is_match, is_ignored) in enumerate(zip(matches.is_match, matches.is_ignored, strict=True)):
            rows = np.flatnonzero(is_match)
            if not len(rows):
                continue
            num_matches = weights[matches.images[rows]].cumsum(axis=0)
            num_counted = num_detections[rows]
            ignored = np.flatnonzero(is_ignored)
            if len(ignored):
                num_ignored = np.vstack([np.zeros(num_replicates), weights[matches.images[ignored]].cumsum(axis=0)])
                num_counted = num_counted - num_ignored[np.searchsorted(ignored, rows)]
            precision = num_matches / (num_counted + np.spacing(1))
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            num_recalls = np.searchsorted(_RECALLS, num_matches / num_objects, side="right")
            result[iou] = (np.diff(num_recalls, axis=0, prepend=0) * precision).sum(axis=0) / NUM_RECALLS
    return np.where(num_objects > 0, result, np.nan)


class ImageMatches(NamedTuple):
    """The detections of an image by descending score, and what happened to its objects."""

    detections: Int64[np.ndarray, " detection"]
    """Indices of the detections with a sufficient score."""
    kinds: Int64[np.ndarray, " detection"]
    """0 for a correct one, the number of an entry of `ERROR_KINDS`, or `IN_CROWD`."""
    objects: Int64[np.ndarray, " detection"]
    """Index of the object that it is paired with; -1 for none. No two detections are paired with one object."""
    ious: Float64[np.ndarray, " detection"]
    """IoU of each pair; -1 for none."""


def match_image(
    object_boxes: Float[np.ndarray, "object 4"],
    object_labels: Int64[np.ndarray, " object"],
    is_crowd: Bool[np.ndarray, " object"],
    boxes: Float[np.ndarray, "detection 4"],
    labels: Int64[np.ndarray, " detection"],
    scores: Float[np.ndarray, " detection"],
    *,
    min_score: float,
    min_iou: float = 0.5,
) -> ImageMatches:
    """Pair the detections of an image with its objects one by one, and determine the kind of each error.

    In the order of scores, detections are paired with objects of their class, the rest with the objects of other
    classes that are left; each with the highest IoU, at least `min_iou`. The kinds are those of TIDE (Bolya et al.).
    """
    order = np.argsort(-scores, kind="stable")
    chosen = order[scores[order] >= min_score]
    ious, in_crowd = _box_ious(boxes[chosen], object_boxes)
    same_class = labels[chosen][:, None] == object_labels[None]
    ious[:, is_crowd] = -1.0
    pairs = np.full(len(chosen), -1)
    is_free = ~is_crowd
    for is_candidate in (same_class, ~same_class):
        for row in np.flatnonzero((pairs < 0) & ((ious >= min_iou) & is_candidate).any(axis=1)):
            free_ious = np.where(is_free & is_candidate[row], ious[row], -1.0)
            best = int(free_ious.argmax())
            if free_ious[best] >= min_iou:
                pairs[row], is_free[best] = best, False
    same_iou = np.where(same_class, ious, -1.0).max(axis=1, initial=-1.0)
    other_iou = np.where(same_class, -1.0, ious).max(axis=1, initial=-1.0)
    is_pair = pairs >= 0
    kinds = np.select(
        [
            is_pair & (np.append(object_labels, -1)[pairs] == labels[chosen]),
            is_pair,
            (in_crowd & same_class & is_crowd).any(axis=1),
            same_iou >= min_iou,
            other_iou >= min_iou,
            same_iou >= _LOWEST_IOU,
            other_iou >= _LOWEST_IOU,
        ],
        [CORRECT, WRONG_CLASS, IN_CROWD, DUPLICATE, WRONG_CLASS, BADLY_PLACED, WRONG_AND_BADLY_PLACED],
        BACKGROUND,
    )
    rows = np.arange(len(chosen))
    pair_ious = np.hstack([ious, np.full((len(chosen), 1), -1.0)])[rows, pairs]
    return ImageMatches(chosen, kinds, pairs, pair_ious)


def _box_ious(
    boxes: Float[np.ndarray, "detection 4"], objects: Float[np.ndarray, "object 4"]
) -> tuple[Float64[np.ndarray, "detection object"], Bool[np.ndarray, "detection object"]]:
    """Return IoUs, and whether at least half of each detection is inside each object."""
    first, second = boxes.astype(np.float64)[:, None], objects.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(min=0).prod(axis=2)
    areas = [(corners[..., 2:] - corners[..., :2]).prod(axis=2) for corners in (first, second)]
    with np.errstate(invalid="ignore", divide="ignore"):
        ious = np.nan_to_num(shared / (areas[0] + areas[1] - shared))
    return ious, shared >= 0.5 * areas[0]
