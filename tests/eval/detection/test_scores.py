"""Scores of detectors: classes, curves, confusions, intervals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from c2fmae.core.objects import Detections, Objects
from c2fmae.eval.detection.coco_format import CocoIds, ImageRecord
from c2fmae.eval.detection.engines import COCO_KEYS
from c2fmae.eval.detection.matching import ERROR_KINDS
from c2fmae.eval.detection.scores import compute_scores
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from tests.eval.detection.random_records import CLASSES, draw_records, rename_categories

TESTING = DetectionTestingConfig()


def test_scores_of_classes_follow_the_labels_whatever_the_category_ids() -> None:
    records = draw_records(12)
    plain = compute_scores(records, CLASSES, TESTING)
    renamed = compute_scores(records, rename_categories((3, 90, 7, 21)), TESTING)
    assert plain.box.metrics == pytest.approx(renamed.box.metrics, abs=1e-12, rel=0)
    assert plain.box.class_ap == renamed.box.class_ap
    assert torch.equal(plain.box.curves[..., :3], renamed.box.curves[..., :3])
    assert plain.mask is not None
    assert renamed.mask is not None
    assert plain.mask.class_ar == renamed.mask.class_ar
    assert len(set(plain.box.class_ap)) == 4  # different for each class
    assert torch.equal(plain.confusion, renamed.confusion)


def test_means_of_the_scores_of_classes_are_the_metrics() -> None:
    scores = compute_scores(draw_records(12), CLASSES, TESTING)
    assert tuple(scores.box.metrics) == COCO_KEYS
    assert scores.mask is not None
    for kind in (scores.box, scores.mask):
        assert kind.class_ap[3] is kind.class_ap50[3] is kind.class_ar[3] is None
        for name, values in (("AP", kind.class_ap), ("AP50", kind.class_ap50), ("AR100", kind.class_ar)):
            assert np.mean([value for value in values if value is not None]) == pytest.approx(kind.metrics[name])
        assert kind.curves.shape == (3, 101, 4)
        assert kind.curves[..., 3].isnan().all()
        assert kind.curves[0].nanmean().item() == pytest.approx(kind.metrics["AP50"])
        assert kind.curves[1].nanmean().item() == pytest.approx(kind.metrics["AP75"])


@pytest.mark.parametrize("decimals", [None, 1])
def test_the_engines_give_equal_scores(decimals: int | None) -> None:
    records = draw_records(12, decimals=decimals)
    first, second = (
        compute_scores(records, CLASSES, DetectionTestingConfig.from_dict({"engine": engine}))
        for engine in ("pycocotools", "faster")
    )
    for kind in ("box", "mask"):
        one, other = getattr(first, kind), getattr(second, kind)
        np.testing.assert_allclose([*one.metrics.values()], [*other.metrics.values()], rtol=0, atol=1e-12)
        torch.testing.assert_close(one.curves, other.curves, rtol=0, atol=1e-12, equal_nan=True)


def test_intervals_contain_the_metrics_and_depend_on_the_seed_alone() -> None:
    scores = compute_scores(draw_records(30), CLASSES, TESTING)
    intervals = scores.box.bootstrap(30, 100)
    for name, (low, high) in intervals.items():
        value = scores.box.metrics[name]
        assert value is not None
        assert low < value < high
    assert intervals == scores.box.bootstrap(30, 100)
    assert intervals != scores.box.bootstrap(30, 100, seed=1)


def test_data_or_detectors_with_boxes_only_have_no_scores_of_masks() -> None:
    records = draw_records(5)
    expected = compute_scores(records, CLASSES, TESTING).box.metrics
    for name in ("objects", "detections"):
        boxes_only = [replace(record, **{name: replace(getattr(record, name), masks=None)}) for record in records]
        scores = compute_scores(boxes_only, CLASSES, TESTING)
        assert scores.mask is None
        assert scores.box.metrics == expected


def test_confusions_count_every_object_and_every_detection_once() -> None:
    records = draw_records(20, seed=5)
    scores = compute_scores(records, CLASSES, TESTING)
    objects = torch.cat([record.objects.labels[~record.objects.is_crowd] for record in records])
    assert scores.num_objects == len(objects)
    assert scores.class_objects.tolist() == objects.bincount(minlength=4).tolist()
    assert scores.confusion[:4].sum(dim=1).tolist() == scores.class_objects.tolist()
    num_detections = sum(int((record.detections.scores >= TESTING.confusion_score).sum()) for record in records)
    num_in_crowds = num_detections - int(scores.confusion[:, :4].sum())
    assert 0 < num_in_crowds < 0.2 * num_detections
    assert list(scores.error_counts) == [*ERROR_KINDS, "missed"]
    errors = sum(scores.error_counts[name] for name in ERROR_KINDS)
    assert errors + int(scores.confusion.diagonal()[:4].sum()) == num_detections - num_in_crowds
    assert scores.error_counts["missed"] == int(scores.confusion[:, 4].sum())
    assert scores.confusion[4, 4] == 0


def _record(row: int, boxes: list[list[float]], detected: list[list[float]], last_label: int = 0) -> ImageRecord:
    """Return an image with objects and detections of class 0; the last detection has another class."""

    def labels(entries: list[list[float]]) -> torch.Tensor:
        return torch.zeros(len(entries), dtype=torch.int64)

    objects = Objects(
        torch.tensor(boxes).float().reshape(-1, 4),
        labels(boxes),
        labels(boxes).bool(),
        torch.ones(len(boxes)),
        labels(boxes),
    )
    predicted = labels(detected)
    predicted[-1:] = last_label
    detections = Detections(torch.tensor(detected).float().reshape(-1, 4), torch.full((len(detected),), 0.9), predicted)
    return ImageRecord(row, f"image {row}", (50, 50), objects, detections)


def test_the_quality_of_an_image_is_its_panoptic_quality() -> None:
    records = [
        _record(0, [[0, 0, 20, 10], [30, 30, 40, 40]], [[0, 0, 20, 8], [30, 0, 40, 10]]),  # one hit, miss, false alarm
        _record(1, [[0, 0, 20, 10]], [[0, 0, 20, 10]]),
        _record(2, [[0, 0, 20, 10]], []),
        _record(3, [], []),
        # One hit; the other object is found with another class, which is a miss and a false alarm.
        _record(4, [[0, 0, 20, 10], [30, 30, 40, 40]], [[0, 0, 20, 10], [30, 30, 40, 40]], last_label=1),
    ]
    quality = compute_scores(records, CLASSES, TESTING).image_quality
    torch.testing.assert_close(quality, torch.tensor([0.4, 1, 0, torch.nan, 0.5]).double(), equal_nan=True)


def test_image_ids_are_the_numbers_of_keys_if_they_differ() -> None:
    assert CocoIds.choose(["a/000042", "a/000007"], ()).images == (42, 7)
    assert CocoIds.choose(["a/1", "b/1"], ()).images == (1, 2)
    assert CocoIds.choose(["cat", "2"], ()).images == (1, 2)
    assert CocoIds.choose(["0", "2"], ()).images == (0, 2)
    assert CocoIds.choose(["7", "2"], (), [3, 0]).images == (3, 0)
    assert CocoIds.choose(["7", "2"], (), [3, None]).images == CocoIds.choose(["7", "2"], (), [3, 3]).images == (7, 2)
    assert CocoIds.choose([], rename_categories((3, 0, 7, 4))).categories == (3, 0, 7, 4)
    assert CocoIds.choose([], rename_categories((3, 90, 7, 3))).categories == (1, 2, 3, 4)
