"""Matches of detections with objects, and AP of bootstrap samples from them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from c2fmae.core.objects import Detections, Objects
from c2fmae.eval.detection.coco_format import CocoIds, ImageRecord, build_results, build_truth
from c2fmae.eval.detection.engines import CocoEvaluation, Engine, Kind, evaluate_coco
from c2fmae.eval.detection.matching import (
    BACKGROUND,
    BADLY_PLACED,
    CORRECT,
    DUPLICATE,
    IN_CROWD,
    WRONG_AND_BADLY_PLACED,
    WRONG_CLASS,
    ClassMatches,
    average_precision,
    match_classes,
    match_image,
)
from tests.eval.detection.random_records import CLASSES, draw_records


def evaluate(
    records: list[ImageRecord], kind: Kind, engine: Engine = "faster-coco-eval"
) -> tuple[CocoEvaluation, list[ClassMatches]]:
    """Return the engine's evaluation, and the matches of each class."""
    ids = CocoIds.choose([record.key for record in records], CLASSES)
    truth, results = build_truth(records, ids, CLASSES), build_results(records, ids)
    evaluation = evaluate_coco(truth, results, kind, engine)
    return evaluation, match_classes(truth, results, evaluation)


def class_precision(evaluation: CocoEvaluation) -> Any:
    """Return the engine's AP [IoU, class] of objects of any size; NaN for a class without objects."""
    precision = evaluation.precision[:, :, :, 0, -1]
    return np.where(precision < 0, np.nan, precision).mean(axis=1)


@pytest.mark.parametrize("engine", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_weights_of_one_give_the_precision_of_the_engine(engine: Engine, kind: Kind) -> None:
    evaluation, matches = evaluate(draw_records(12, decimals=2), kind, engine)
    ap = np.stack([average_precision(entry, np.ones((12, 1)))[:, 0] for entry in matches], axis=1)
    np.testing.assert_allclose(ap, class_precision(evaluation), rtol=0, atol=1e-12)
    assert np.isnan(ap[:, 3]).all()  # no object is a unicorn


def test_weights_count_images_several_times_or_not_at_all() -> None:
    records = draw_records(10, seed=1)
    weights = np.array([[0, 2, 1, 0, 3, 1, 0, 1, 2, 1]]).T
    _, matches = evaluate(records, "bbox")
    ap = np.stack([average_precision(entry, weights.astype(np.float64))[:, 0] for entry in matches], axis=1)
    repeated = [record for record, weight in zip(records, weights[:, 0], strict=True) for _ in range(weight)]
    repeated = [replace(record, row=row, key=f"{row:03d}") for row, record in enumerate(repeated, start=0)]
    np.testing.assert_allclose(ap, class_precision(evaluate(repeated, "bbox")[0]), rtol=0, atol=1e-12)


def test_all_replicates_are_computed_at_once() -> None:
    weights = np.random.default_rng(0).poisson(1, (10, 5)).astype(np.float64)
    weights[:, 3] = 0
    for entry in evaluate(draw_records(10, seed=2), "bbox")[1]:
        expected = np.concatenate([average_precision(entry, weights[:, [column]]) for column in range(5)], axis=1)
        np.testing.assert_array_equal(average_precision(entry, weights), expected)
        assert np.isnan(expected[:, 3]).all()


def match(objects: list[tuple[Any, int, bool]], detections: list[tuple[Any, int, float]]) -> list[int]:
    """Return the kinds of detections (box, label, score), in their order, with objects (box, label, crowd)."""
    result = match_image(
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int64),
        np.array([crowd for _, _, crowd in objects], bool),
        np.array([box for box, _, _ in detections], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in detections], np.int64),
        np.array([score for _, _, score in detections], np.float32),
        min_score=0.3,
    )
    kinds = np.full(len(detections), 99)
    kinds[result.detections] = result.kinds
    return [int(kind) for kind in kinds]


def test_each_detection_is_of_one_kind() -> None:
    cat, dog, crowd = [0, 0, 20, 20], [50, 0, 70, 20], [100, 0, 200, 100]
    objects = [(cat, 0, False), (dog, 1, False), (crowd, 0, True)]
    detections = [
        ([0, 0, 20, 18], 0, 0.8),
        ([0, 0, 20, 20], 0, 0.7),  # better, but later
        ([0, 0, 20, 20], 1, 0.6),
        ([50, 0, 70, 20], 0, 0.9),  # instead of a dog
        ([10, 0, 30, 20], 0, 0.5),
        ([60, 0, 80, 20], 0, 0.5),
        ([0, 50, 20, 70], 0, 0.4),
        ([110, 10, 120, 20], 0, 0.4),
        ([110, 10, 120, 20], 1, 0.4),  # the crowd is one of cats
        ([0, 0, 20, 20], 0, 0.2),  # its score is too low
    ]
    expected = [CORRECT, DUPLICATE, WRONG_CLASS, WRONG_CLASS, BADLY_PLACED, WRONG_AND_BADLY_PLACED, BACKGROUND]
    assert match(objects, detections) == [*expected, IN_CROWD, BACKGROUND, 99]


def test_detections_of_the_right_class_are_paired_first() -> None:
    # The dog has the higher score, but the cat is found.
    assert match([([0, 0, 20, 20], 0, False)], [([0, 0, 20, 20], 1, 0.9), ([0, 0, 20, 19], 0, 0.4)]) == [
        WRONG_CLASS,
        CORRECT,
    ]


def test_images_without_objects_or_detections_are_matched() -> None:
    assert match([], []) == []
    assert match([], [([0, 0, 9, 9], 0, 0.9)]) == [BACKGROUND]
    assert match([([0, 0, 9, 9], 0, False)], []) == []
    assert match([([0, 0, 0, 9], 0, False)], [([3, 3, 3, 3], 0, 0.9)]) == [BACKGROUND]  # without an area


def test_an_object_is_paired_with_one_detection() -> None:
    rng = np.random.default_rng(0)
    for record in draw_records(20, seed=4):
        objects: Objects = record.objects
        detections: Detections = record.detections
        result = match_image(
            objects.boxes.numpy(),
            objects.labels.numpy(),
            objects.is_crowd.numpy(),
            detections.boxes.numpy(),
            detections.labels.numpy(),
            rng.random(len(detections)),
            min_score=0.0,
        )
        paired = result.objects[result.objects >= 0]
        assert len(set(paired.tolist())) == len(paired)
        assert not objects.is_crowd[torch.from_numpy(paired)].any()
        assert ((result.ious >= 0.5) == (result.objects >= 0)).all()
