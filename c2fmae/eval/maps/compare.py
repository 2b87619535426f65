"""Comparison of the maps of a set with true ones: counts of each image, and the scores of their sums.

Processes count images in any order. Their counts are arranged by image before they are summed, so scores do not depend
on the number of processes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from c2fmae.core.labels import ClassInfo
from c2fmae.data.image_regions import has_scikit_image
from c2fmae.data.process_pool import run_in_processes
from c2fmae.eval.confusion import ClassTotals, totals_to_ious, totals_to_overall_accuracy
from c2fmae.eval.intervals import ScoreInterval, bootstrap_scores
from c2fmae.eval.maps.baselines import make_full_image_map, make_middle_box_map, make_region_map
from c2fmae.eval.maps.boundaries import Boundary, count_boundaries, totals_to_boundary_scores
from c2fmae.eval.maps.objects import count_objects, totals_to_object_scores
from c2fmae.eval.maps.overlaps import IndexedIds, count_overlaps, index_ids
from c2fmae.eval.maps.pairs import MapPair, MapPairs, convert_classes, match_classes, sample_ids
from c2fmae.eval.maps.panoptic import (
    PanopticTotals,
    count_matched_objects,
    count_matched_segments,
    totals_to_class_qualities,
    totals_to_panoptic_scores,
)
from c2fmae.eval.maps.semantic import (
    UNASSIGNED,
    assign_majority,
    assign_one_to_one,
    count_classes,
    totals_of_assignment,
)
from c2fmae.eval.metrics import METRIC_INFO, Metric, TagValue

MAPS, FULL_IMAGE, MIDDLE_BOX, REGIONS = "maps", "full image", "middle box", "regions"
"""What is scored: the maps, and three baselines of instance maps."""
NAMES, ONE_TO_ONE, MAJORITY = "by name", "one to one", "by majority"
"""How predicted classes become true ones: by name or, for clusters without names, by overlap."""

_CHUNK_SIZE = 16  # images per task of a process
_TOTALS_CHUNK = 64  # images whose confusion matrices are in memory at once
_MAX_CLASSES = 255  # of maps whose classes are not listed
_OBJECTS, _MATCHES, _EDGES = slice(0, 8), slice(8, 12), slice(12, 16)  # columns of the counts of an instance map

_Scores = dict[str, Float64[Tensor, "*batch"]]


@dataclass(frozen=True)
class MapComparison:
    """Counts of all images, from which every score is computed."""

    num_images: int
    classes: tuple[ClassInfo, ...] = ()
    """The true classes."""
    unmatched: tuple[str, ...] = ()
    """Predicted classes that have the name of no true class, if any has: all of their pixels are errors."""
    object_totals: Mapping[str, Float64[Tensor, "image 16"]] = field(default_factory=dict)
    """Of each scored instance map: the totals of objects, matches and boundaries."""
    class_totals: Mapping[str, ClassTotals] = field(default_factory=dict)
    """For each way from predicted to true classes: the correct, true and predicted pixels of each class and image."""
    boundary_totals: Mapping[str, Int64[Tensor, "image 4"]] = field(default_factory=dict)
    """The boundaries of all semantic regions, and with classes of things those of these."""
    segment_totals: PanopticTotals | None = None
    """The matched segments of each image and class, if both sets have both maps and names of classes."""

    @property
    def class_ious(self) -> Float64[Tensor, " class"]:
        """The IoU of each true class, with the first way to classes; NaN for one that neither occurs nor is found."""
        return totals_to_ious(next(iter(self.class_totals.values())).sum(dim=0))

    @property
    def class_qualities(self) -> Float64[Tensor, "3 class"] | None:
        """The panoptic, segmentation and recognition quality of each true class."""
        return None if self.segment_totals is None else totals_to_class_qualities(self.segment_totals.sum(dim=0))

    def image_scores(self) -> Float64[Tensor, " image"]:
        """Return the mean best overlap of each image's objects, or without instance maps its mean IoU.

        NaN for an image without objects, or without labels.
        """
        if self.object_totals:
            return totals_to_object_scores(self.object_totals[MAPS][:, _OBJECTS])["average_best_overlap"]
        totals = next(iter(self.class_totals.values()))
        has_labels = totals[:, 1].sum(dim=1) > 0
        return totals_to_ious(totals).nanmean(dim=1).where(has_labels, torch.nan)

    def compute_metrics(self, *, seed: int = 0) -> dict[str, tuple[Metric, ...]]:
        """Return the metrics of the maps and of each baseline, with intervals from bootstrap samples of images."""
        rows: dict[str, list[Metric]] = {MAPS: []}
        for name, class_totals in self.class_totals.items():
            tags = {} if name == NAMES else {"clusters": name}
            rows[MAPS] += self._to_metrics(bootstrap_scores(class_totals, _score_classes, seed=seed), tags)
        for name, edges in self.boundary_totals.items():
            scores = bootstrap_scores(edges, totals_to_boundary_scores, seed=seed)
            rows[MAPS] += self._to_metrics(scores, {"region_kind": name})
        if self.segment_totals is not None:
            scores = bootstrap_scores(self.segment_totals, totals_to_panoptic_scores, seed=seed)
            rows[MAPS] += self._to_metrics(scores, {"region_kind": "classes"})
        for row, object_totals in self.object_totals.items():
            scores = bootstrap_scores(object_totals, _score_objects, seed=seed)
            rows.setdefault(row, []).extend(self._to_metrics(scores, {"region_kind": "objects"}))
        return {row: tuple(metrics) for row, metrics in rows.items()}

    def _to_metrics(self, scores: Mapping[str, ScoreInterval], tags: Mapping[str, TagValue]) -> list[Metric]:
        """Return metrics in the units of `METRIC_INFO`, without those that are not defined."""
        metrics = []
        for key, (value, interval) in scores.items():
            scale = 100 if METRIC_INFO[key].unit == "%" else 1
            if not np.isnan(value):
                ends = None if np.isnan(interval).any() else (scale * interval[0], scale * interval[1])
                metrics.append(Metric(key, scale * value, self.num_images, ends, tags=tags))
        return metrics


def compare_maps(
    pairs: MapPairs, *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> MapComparison:
    """Compare the maps of all images with the true ones.

    The baselines of instance maps are the full image, a box in the middle and, where images and scikit-image exist,
    regions of similar colour.
    """
    counter = _make_counter(pairs)
    counts: dict[int, _ImageCounts] = {}
    chunks = [range(start, min(start + _CHUNK_SIZE, len(pairs))) for start in range(0, len(pairs), _CHUNK_SIZE)]
    with closing(run_in_processes(counter, chunks, workers)) as results:
        for index, image_counts in results:
            counts[index] = image_counts
            progress(1)
    by_image = [counts[index] for index in range(len(pairs))]
    objects = {row: torch.from_numpy(np.stack([each.objects[row] for each in by_image])) for row in by_image[0].objects}
    edges = {
        name: torch.from_numpy(np.stack([each.boundaries[name] for each in by_image]))
        for name in by_image[0].boundaries
    }
    segments = [each.segments for each in by_image if each.segments is not None]
    return MapComparison(
        num_images=len(pairs),
        classes=pairs.truth.info.classes,
        unmatched=counter.unmatched,
        object_totals=objects,
        class_totals=_assign_classes(counter, by_image) if "semantic" in pairs.granularities else {},
        boundary_totals=edges,
        segment_totals=torch.from_numpy(np.stack(segments)) if segments else None,
    )


@dataclass(frozen=True)
class _ImageCounts:
    """Counts of one image, as arrays: processes would share the memory of tensors, one file for each."""

    objects: dict[str, Float64[np.ndarray, "16"]]
    boundaries: dict[str, Int64[np.ndarray, "4"]]
    segments: Float64[np.ndarray, "4 class"] | None
    pairs: Int64[np.ndarray, "2 pairs"]
    """Pairs of a true and a predicted class, as a position in the confusion matrix, with their number of pixels."""


@dataclass(frozen=True)
class _ImageCounter:
    """The work of one process: yield the counts of each image of a chunk."""

    pairs: MapPairs
    shape: tuple[int, int]
    """Of confusion matrices: the number of true classes, and of predicted ones with the unlabelled pixels."""
    classes: Int64[np.ndarray, " predicted"] | None
    """The true class of each predicted one; None if there are no names in common."""
    unmatched: tuple[str, ...]
    things: tuple[int, ...]
    """True classes of things."""
    has_regions: bool

    def __call__(self, chunk: range) -> Iterator[tuple[int, _ImageCounts]]:
        for index in chunk:
            yield index, self._count(self.pairs[index])

    def _count(self, pair: MapPair) -> _ImageCounts:
        objects, boundaries, segments = {}, {}, None
        confusion = np.zeros((2, 0), np.int64)
        if "instance" in pair.truth:
            true_ids, true_boundary = index_ids(pair.truth["instance"]), Boundary(pair.truth["instance"], [0])
            for row, ids in self._list_instance_maps(pair):
                objects[row] = _count_instances(ids, true_ids, true_boundary)
        if "semantic" in pair.truth:
            predicted, truth = pair.predicted["semantic"], pair.truth["semantic"]
            num_classes, num_columns = self.shape
            counts = count_classes(predicted[None], truth[None], num_classes, num_columns - 1)[0].flatten().numpy()
            positions = np.flatnonzero(counts)
            confusion = np.stack([positions, counts[positions]])
            boundaries["classes"] = count_boundaries(Boundary(predicted), Boundary(truth)).numpy()
            if self.classes is not None and self.things:
                converted = convert_classes(predicted, torch.from_numpy(self.classes))
                stuff = [number for number in range(num_classes) if number not in self.things]
                edges = count_boundaries(Boundary(converted, stuff), Boundary(truth, stuff))
                boundaries["things"] = edges.numpy()
                if "instance" in pair.truth:
                    segments = self._count_segments(converted, pair)
        return _ImageCounts(objects, boundaries, segments, confusion)

    def _count_segments(
        self, converted: Integer[Tensor, "rows columns"], pair: MapPair
    ) -> Float64[np.ndarray, "4 class"]:
        is_thing = torch.zeros(self.shape[0], dtype=torch.bool)
        is_thing[list(self.things)] = True
        predicted = converted, pair.predicted["instance"]
        return count_matched_segments(predicted, (pair.truth["semantic"], pair.truth["instance"]), is_thing).numpy()

    def _list_instance_maps(self, pair: MapPair) -> Iterator[tuple[str, Integer[Tensor, "rows columns"]]]:
        """Yield the instance map and those of the baselines."""
        rows, columns = pair.truth["instance"].shape
        yield MAPS, pair.predicted["instance"]
        yield FULL_IMAGE, make_full_image_map(rows, columns)
        yield MIDDLE_BOX, make_middle_box_map(rows, columns)
        if self.has_regions and pair.image is not None:
            regions = make_region_map(pair.image)
            size = (regions.shape[0], regions.shape[1])
            yield REGIONS, sample_ids(regions, size, 1, pair.size, pair.stride)


def _make_counter(pairs: MapPairs) -> _ImageCounter:
    predicted, truth = pairs.maps.info.classes, pairs.truth.info.classes
    classes, unmatched = match_classes(predicted, truth)
    is_named = bool((classes != UNASSIGNED).any())
    has_image = any("rgb" in scenes.info.granularities for scenes in (pairs.maps, pairs.truth))
    return _ImageCounter(
        pairs,
        (len(truth) or _MAX_CLASSES, (len(predicted) or _MAX_CLASSES) + 1),
        classes.numpy() if is_named else None,
        tuple(unmatched) if is_named else (),
        tuple(number for number, entry in enumerate(truth) if entry.is_thing),
        has_image and pairs.truth.info.channels in (1, 3) and has_scikit_image(),
    )


def _count_instances(
    predicted: Integer[Tensor, "rows columns"], true_ids: IndexedIds, true_boundary: Boundary
) -> Float64[np.ndarray, "16"]:
    table = count_overlaps(true_ids, predicted)
    edges = count_boundaries(Boundary(predicted, [0]), true_boundary)
    return torch.cat([count_objects(table), count_matched_objects(table).flatten(), edges.double()]).numpy()


def _assign_classes(counter: _ImageCounter, by_image: list[_ImageCounts]) -> dict[str, ClassTotals]:
    """Return the totals of each class and image, with predicted classes by their names, or assigned to true ones."""
    confusion = torch.zeros(counter.shape, dtype=torch.float64)
    for each in by_image:
        confusion += _dense(counter.shape, [each])[0]
    if counter.classes is not None:
        ways = {NAMES: torch.from_numpy(counter.classes)}
    else:
        ways = {ONE_TO_ONE: assign_one_to_one(confusion), MAJORITY: assign_majority(confusion)}
    totals: dict[str, list[Tensor]] = {name: [] for name in ways}
    for start in range(0, len(by_image), _TOTALS_CHUNK):
        counts = _dense(counter.shape, by_image[start : start + _TOTALS_CHUNK])
        for name, classes in ways.items():
            totals[name].append(totals_of_assignment(counts, classes).long())
    return {name: torch.cat(chunks) for name, chunks in totals.items()}


def _dense(shape: tuple[int, int], by_image: list[_ImageCounts]) -> Float64[Tensor, "image truth predicted"]:
    """Return the confusion matrices of images; sums of pixels are exact in double precision."""
    counts = np.zeros((len(by_image), shape[0] * shape[1]))
    for row, each in zip(counts, by_image, strict=True):
        row[each.pairs[0]] = each.pairs[1]
    dense: Tensor = torch.from_numpy(counts).view(-1, *shape)
    return dense


def _score_classes(totals: ClassTotals) -> _Scores:
    return {
        "mean_iou": totals_to_ious(totals).nanmean(dim=-1),
        "pixel_accuracy": totals_to_overall_accuracy(totals),
    }


def _score_objects(totals: Float64[Tensor, "*batch 16"]) -> _Scores:
    return {
        **totals_to_object_scores(totals[..., _OBJECTS]),
        **totals_to_panoptic_scores(totals[..., _MATCHES, None]),
        **totals_to_boundary_scores(totals[..., _EDGES]),
    }
