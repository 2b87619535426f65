"""Scores of a detector: COCO's metrics, those of each class, confusions and intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from c2fmae.core.labels import ClassInfo
from c2fmae.eval.detection.coco_format import CocoIds, ImageRecord, build_results, build_truth, choose_ids
from c2fmae.eval.detection.engines import (
    CocoDict,
    CocoResults,
    Kind,
    choose_engine,
    evaluate_coco,
    mean_of_valid,
)
from c2fmae.eval.detection.matching import (
    CORRECT,
    ERROR_KINDS,
    IN_CROWD,
    ClassMatches,
    ImageMatches,
    average_precision,
    match_classes,
    match_image,
)
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.intervals import percentile_interval, poisson_weights

CURVE_IOUS = (0.5, 0.75, 0.95)
"""IoUs of the precision-recall curves."""
_CURVE_ROWS = (0, 5, 9)  # of COCO's IoU thresholds


@dataclass(frozen=True)
class KindScores:
    """The scores of boxes, or of masks."""

    metrics: Mapping[str, float | None]
    """COCO's metrics by the names in `COCO_KEYS`, in [0, 1]; None where no object has the size."""
    class_ap: tuple[float | None, ...]
    """AP of each class; None for a class without objects."""
    class_ap50: tuple[float | None, ...]
    """AP at an IoU of 0.5 of each class."""
    class_ar: tuple[float | None, ...]
    """AR with 100 detections of each class."""
    curves: Float64[Tensor, "iou recall class"]
    """Precision at each of `CURVE_IOUS` and the recalls 0, 0.01 … 1; NaN for a class without objects."""
    matches: tuple[ClassMatches, ...]
    """The matches of each class, from which intervals are computed; images in the order of their ids."""

    def bootstrap(self, num_images: int, num_samples: int, *, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return the 95 % intervals of AP, AP50 and AP75, from bootstrap samples of the images."""
        indices = torch.arange(num_images)
        weights = poisson_weights(indices, seed=seed, num_replicates=num_samples).numpy()
        class_ap = torch.from_numpy(np.stack([average_precision(matches, weights) for matches in self.matches]))
        ap = class_ap.nanmean(dim=0)
        values = {"AP": ap.mean(dim=0), "AP50": ap[0], "AP75": ap[5]}
        return {name: percentile_interval(replicates) for name, replicates in values.items()}


@dataclass(frozen=True)
class DetectionScores:
    """The scores of a detector on a test set."""

    box: KindScores
    mask: KindScores | None
    """None for a detector without masks, or a test set without them."""
    num_images: int
    class_objects: Int64[Tensor, " class"]
    """The number of objects of each class, without crowds."""
    confusion: Int64[Tensor, "truth predicted"]
    """Pairs of objects and detections by class; the last row counts false alarms, the last column misses."""
    error_counts: Mapping[str, int]
    """The number of detections of each of `ERROR_KINDS`, and of objects that are `missed`."""
    size_objects: tuple[int, int, int]
    """The number of small, medium and large objects, without crowds. One of exactly 32² or 96² pixels has two sizes."""
    image_quality: Float64[Tensor, " image"]
    """The panoptic quality of the boxes of each image; NaN for an image without any."""
    image_counts: Int64[Tensor, "image 3"]
    """The numbers of objects that are found and missed in each image, and of false alarms."""

    @property
    def kinds(self) -> dict[str, KindScores]:
        """The scores of boxes by `box`, and those of masks, if there are any, by `mask`."""
        return {"box": self.box, **({"mask": self.mask} if self.mask is not None else {})}

    @property
    def num_objects(self) -> int:
        """The number of objects, without crowds."""
        return int(self.class_objects.sum())


def compute_scores(
    records: Sequence[ImageRecord], classes: Sequence[ClassInfo], testing: DetectionTestingConfig
) -> DetectionScores:
    """Return the scores of the detections in all images of a set, in the order of the set."""
    ids = choose_ids(records, classes)
    truth, results = build_truth(records, ids, classes), build_results(records, ids)
    has_masks = all(None not in (record.objects.masks, record.detections.masks) for record in records)
    box = _score_kind(truth, results, ids, "bbox", testing)
    mask = _score_kind(truth, results, ids, "segm", testing) if has_masks else None
    matches = [match_record(record, testing.confusion_score) for record in records]
    counts = torch.tensor([_count_image(record, match) for record, match in zip(records, matches, strict=True)])
    labels = torch.cat([record.objects.labels[~record.objects.is_crowd] for record in records])
    return DetectionScores(
        box,
        mask,
        len(records),
        labels.bincount(minlength=len(classes)),
        _count_confusions(records, matches, len(classes)),
        _count_errors(records, matches),
        _count_sizes(records),
        _compute_quality(counts, matches),
        counts,
    )


def match_record(record: ImageRecord, min_score: float) -> ImageMatches:
    """Return what the detections of an image are, and which objects are found, at an IoU of 0.5 of boxes."""
    objects, detections = record.objects, record.detections
    return match_image(
        objects.boxes.numpy(),
        objects.labels.numpy(),
        objects.is_crowd.numpy(),
        detections.boxes.numpy(),
        detections.labels.numpy(),
        detections.scores.numpy(),
        min_score=min_score,
    )


def _score_kind(
    truth: CocoDict, results: CocoResults, ids: CocoIds, kind: Kind, testing: DetectionTestingConfig
) -> KindScores:
    evaluation = evaluate_coco(truth, results, kind, choose_engine(testing.engine))
    order = np.argsort(np.argsort(ids.categories))  # the engine's position of each label
    precision, recall = evaluation.precision[:, :, order, 0, -1], evaluation.recall[:, order, 0, -1]
    matches = match_classes(truth, results, evaluation)
    labels = range(len(order))
    curves = precision[list(_CURVE_ROWS)]
    return KindScores(
        evaluation.compute_metrics(),
        tuple(mean_of_valid(precision[:, :, label]) for label in labels),
        tuple(mean_of_valid(precision[0, :, label]) for label in labels),
        tuple(mean_of_valid(recall[:, label]) for label in labels),
        torch.from_numpy(np.where(curves < 0, np.nan, curves)),
        tuple(matches[position] for position in order.tolist()),
    )


def _count_confusions(
    records: Sequence[ImageRecord], matches: Sequence[ImageMatches], num_classes: int
) -> Int64[Tensor, "truth predicted"]:
    """Count pairs by class. A detection in a crowd is no false alarm, and a crowd no miss."""
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for record, match in zip(records, matches, strict=True):
        labels = record.objects.labels.numpy()
        predicted = record.detections.labels.numpy()[match.detections]
        is_counted = match.kinds != IN_CROWD
        true = np.append(labels, num_classes)[match.objects]  # -1 is the last: none
        np.add.at(counts, (true[is_counted], predicted[is_counted]), 1)
        np.add.at(counts, (labels[find_missed(record, match)], num_classes), 1)
    return torch.from_numpy(counts)


def find_missed(record: ImageRecord, match: ImageMatches) -> Int64[np.ndarray, " object"]:
    """Return the indices of the objects, without crowds, that no detection is paired with."""
    is_missed = ~record.objects.is_crowd.numpy()
    is_missed[match.objects[match.objects >= 0]] = False
    return np.flatnonzero(is_missed)


def _count_errors(records: Sequence[ImageRecord], matches: Sequence[ImageMatches]) -> dict[str, int]:
    kinds = np.concatenate([match.kinds for match in matches])
    counts = {name: int((kinds == number).sum()) for number, name in enumerate(ERROR_KINDS, start=1)}
    missed = sum(len(find_missed(record, match)) for record, match in zip(records, matches, strict=True))
    return {**counts, "missed": missed}


def _count_sizes(records: Sequence[ImageRecord]) -> tuple[int, int, int]:
    areas = torch.cat([record.objects.areas[~record.objects.is_crowd] for record in records])
    is_small, is_large = areas <= 32**2, areas >= 96**2
    is_medium = (areas >= 32**2) & (areas <= 96**2)
    return int(is_small.sum()), int(is_medium.sum()), int(is_large.sum())


def _count_image(record: ImageRecord, match: ImageMatches) -> tuple[int, int, int]:
    """Return the numbers of objects that are found and missed, and of false alarms.

    An object that is found with another class is missed, and its detection a false alarm.
    """
    num_found = int((match.kinds == CORRECT).sum())
    return num_found, int((~record.objects.is_crowd).sum()) - num_found, int((match.kinds > CORRECT).sum())


def _compute_quality(counts: Int64[Tensor, "image 3"], matches: Sequence[ImageMatches]) -> Float64[Tensor, " image"]:
    """Return the sum of the IoUs of correct pairs of each image, divided by their number plus half of the errors."""
    sums = [float(match.ious[match.kinds == CORRECT].sum()) for match in matches]
    return torch.tensor(sums, dtype=torch.float64) / (counts[:, 0] + counts[:, 1:].sum(dim=1) / 2)
