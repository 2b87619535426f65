"""Evaluations of detectors: stored detections, resuming, processes, errors."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.objects import Objects
from c2fmae.data.objects import open_objects
from c2fmae.eval.detection import evaluator as evaluator_module
from c2fmae.eval.detection.coco_format import CocoIds, build_truth
from c2fmae.eval.detection.engines import Kind
from c2fmae.eval.detection.evaluator import DetectorEvaluator
from c2fmae.eval.detection.prediction_store import DetectionStore
from c2fmae.eval.detection.scores import DetectionScores, KindScores, compute_scores
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from tests.eval.detection.object_scenes import GivenDetector, ObjectScenes, give_detections
from tests.eval.detection.random_records import CLASSES, draw_records, rename_categories
from tests.eval.detection.test_engines import assert_equal_metrics, run_pycocotools

IDENTITY = {"weights": "0", "data": "1"}
TESTING = DetectionTestingConfig()


@pytest.fixture(autouse=True)
def _given_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_module, "detect_objects", give_detections)


def make_evaluator(scenes: ObjectScenes) -> DetectorEvaluator:
    return DetectorEvaluator(scenes, TESTING, World(), num_workers=0)


def are_equal(one: DetectionScores, other: DetectionScores) -> bool:
    assert one.mask is not None
    assert other.mask is not None
    return (
        one.box.metrics == other.box.metrics
        and one.mask.metrics == other.mask.metrics
        and one.box.bootstrap(one.num_images, 20) == other.box.bootstrap(other.num_images, 20)
        and torch.equal(one.confusion, other.confusion)
        and torch.equal(one.image_quality.nan_to_num(-1), other.image_quality.nan_to_num(-1))
    )


def test_detections_in_all_images_are_scored(tmp_path: Path) -> None:
    records = draw_records(8)
    detector = GivenDetector(records)
    detector.train()
    scores = make_evaluator(ObjectScenes(records)).evaluate(detector)
    assert detector.training
    assert are_equal(scores, compute_scores(records, CLASSES, TESTING))


def test_metrics_are_those_of_pycocotools_on_the_written_files(tmp_path: Path) -> None:
    records = draw_records(12, seed=7)
    scores = make_evaluator(ObjectScenes(records)).evaluate(
        GivenDetector(records), store=DetectionStore(tmp_path / "predictions", IDENTITY)
    )
    assert scores.mask is not None
    truth, results = tmp_path / "truth.json", tmp_path / "predictions.json"
    assert_equal_metrics(dict(scores.box.metrics), run_pycocotools(truth, results, "bbox"))
    assert_equal_metrics(dict(scores.mask.metrics), run_pycocotools(truth, results, "segm"))
    assert [image["file_name"] for image in json.loads(truth.read_text())["images"]] == [r.key for r in records]


def test_metrics_are_those_of_pycocotools_on_the_file_of_the_data(tmp_path: Path) -> None:
    records = draw_records(9, seed=8)
    classes = rename_categories((3, 90, 7, 21))
    truth = build_truth(records, CocoIds(tuple(range(100, 73, -3)), (3, 90, 7, 21)), classes)
    for record, image in zip(records, truth["images"], strict=True):
        image["file_name"] += ".png"
        pixels = np.zeros((*record.size, 3), np.uint8)
        pixels[0, 0] = record.row
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    truth["categories"] = [truth["categories"][row] for row in (1, 0, 3, 2)]
    (tmp_path / "objects.json").write_text(json.dumps(truth))
    scenes = open_objects(str(tmp_path / "objects.json"))
    assert [entry.coco_id for entry in scenes.info.object_classes] == [90, 3, 21, 7]
    order = torch.tensor([1, 0, 3, 2])
    records = [
        replace(record, detections=replace(record.detections, labels=order[record.detections.labels]))
        for record in records
    ]
    store = DetectionStore(tmp_path / "result" / "predictions", IDENTITY)
    scores = DetectorEvaluator(scenes, TESTING, World(), num_workers=0).evaluate(GivenDetector(records), store=store)
    predictions = tmp_path / "result" / "predictions.json"
    assert {entry["image_id"] for entry in json.loads(predictions.read_text())} <= set(range(76, 101, 3))
    assert scores.mask is not None
    kinds: tuple[tuple[Kind, KindScores], ...] = (("bbox", scores.box), ("segm", scores.mask))
    for kind, kind_scores in kinds:
        assert_equal_metrics(dict(kind_scores.metrics), run_pycocotools(tmp_path / "objects.json", predictions, kind))


def test_an_interrupted_evaluation_does_not_predict_again(tmp_path: Path) -> None:
    records = draw_records(8)
    evaluator, store = make_evaluator(ObjectScenes(records)), DetectionStore(tmp_path / "predictions", IDENTITY)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(GivenDetector(records, stop_after=5), store=store)
    (path,) = store.predictions_dir.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote the last line
    detector = GivenDetector(records)
    expected = compute_scores(records, CLASSES, TESTING)
    assert are_equal(evaluator.evaluate(detector, store=store), expected)
    assert detector.num_images == 8 - 5 + 1
    predictions = (tmp_path / "predictions.json").read_bytes()
    assert are_equal(evaluator.evaluate(detector, store=store), expected)
    assert are_equal(evaluator.score_predictions(store), expected)
    assert detector.num_images == 8 - 5 + 1
    assert (tmp_path / "predictions.json").read_bytes() == predictions


def test_lines_that_are_no_detections_are_skipped(tmp_path: Path) -> None:
    records = draw_records(3)
    store = DetectionStore(tmp_path / "predictions", IDENTITY)
    evaluator = make_evaluator(ObjectScenes(records))
    evaluator.evaluate(GivenDetector(records), store=store)
    path = store.predictions_dir / "0.jsonl"
    line = json.loads(path.read_bytes().splitlines()[-1])
    invalid = [b"\xff", b"[]", b"{}", b"null", b'"text"', b"{", *(_change(line, key) for key in line)]
    path.write_bytes(b"\n".join([*path.read_bytes().splitlines()[:2], *invalid]))
    assert list(store.read()) == [record.key for record in records[:2]]


def _change(line: dict[str, object], key: str) -> bytes:
    return json.dumps({**line, key: {"size": [3], "masks": ["x"], "boxes": [[1, 2, 3]]}.get(key, ["a"])}).encode()


def test_detections_of_other_weights_or_settings_are_replaced(tmp_path: Path) -> None:
    records = draw_records(4)
    evaluator, store = make_evaluator(ObjectScenes(records)), DetectionStore(tmp_path / "predictions", IDENTITY)
    evaluator.evaluate(GivenDetector(records), store=store)
    detector = GivenDetector(draw_records(4, seed=1))
    evaluator.evaluate(detector, store=replace(store, identity={**IDENTITY, "weights": "2"}))
    assert detector.num_images == 4


def test_detections_of_an_image_of_another_size_are_replaced(tmp_path: Path) -> None:
    records = draw_records(4)
    store = DetectionStore(tmp_path / "predictions", IDENTITY)
    make_evaluator(ObjectScenes(records)).evaluate(GivenDetector(records), store=store)
    records[1] = replace(records[1], size=(100, 300), objects=replace(records[1].objects, masks=None))
    detector = GivenDetector(records)
    make_evaluator(ObjectScenes(records)).evaluate(detector, store=store)
    assert detector.num_images == 1


def test_scores_of_missing_detections_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^image-000: has no stored detections. Test the run again: c2fmae eval detect"):
        make_evaluator(ObjectScenes(draw_records(2))).score_predictions(DetectionStore(tmp_path, IDENTITY))


def test_sets_that_cannot_be_scored_are_an_error() -> None:
    records = draw_records(3)
    empty = [replace(record, objects=Objects.empty(has_masks=True)) for record in records]
    for unusable in (empty, [replace(records[2], row=0)]):  # without objects, and with crowds only
        with pytest.raises(UserError, match=r"^test: none of the \d images has an object. Check the data"):
            make_evaluator(ObjectScenes(unusable)).evaluate(GivenDetector(records))
    scenes = ObjectScenes(records)
    scenes._scenes[1] = replace(scenes._scenes[1], objects=None)
    with pytest.raises(UserError, match="^image-001: the data has no objects. Use data with boxes"):
        make_evaluator(scenes).evaluate(GivenDetector(records))
    scenes.info = scenes.info.model_copy(update={"object_classes": CLASSES[:2]})
    with pytest.raises(UserError, match="^test: the data has 2 classes of objects, but the detector 4. Use a set with"):
        make_evaluator(scenes).evaluate(GivenDetector(records))


class ThreadRank(World):
    """A rank that is a thread of this process."""

    meeting = threading.Barrier(2)
    values: ClassVar[dict[str, Any]] = {}

    def gather_objects(self, value: Any) -> list[Any]:
        self.values[f"{self.rank}"] = value
        self.barrier()
        return [self.values[f"{rank}"] for rank in range(self.size)] if self.is_main else []

    def broadcast_object(self, value: Any) -> Any:
        if self.is_main:
            self.values["main"] = value
        self.barrier()
        return self.values["main"]

    def barrier(self) -> None:
        self.meeting.wait()


@pytest.mark.parametrize("stop_after", [0, 2])
def test_two_processes_compute_the_scores_of_one(tmp_path: Path, stop_after: int) -> None:
    records = draw_records(7)
    one, two = (DetectionStore(tmp_path / name / "predictions", IDENTITY) for name in ("one", "two"))
    expected = make_evaluator(ObjectScenes(records)).evaluate(GivenDetector(records), store=one)
    if stop_after:  # two processes continue what one began
        with pytest.raises(KeyboardInterrupt):
            make_evaluator(ObjectScenes(records)).evaluate(GivenDetector(records, stop_after=2), store=two)

    def run_rank(rank: int) -> tuple[DetectionScores, int]:
        detector = GivenDetector(records)
        evaluator = DetectorEvaluator(ObjectScenes(records), TESTING, ThreadRank(rank, 2), num_workers=0)
        return evaluator.evaluate(detector, store=two), detector.num_images

    with ThreadPoolExecutor(2) as pool:
        (scores, num_images), (other_scores, num_others) = pool.map(run_rank, range(2))
    assert are_equal(scores, expected)
    assert are_equal(other_scores, expected)
    assert [num_images, num_others] == ([3, 2] if stop_after else [4, 3])
    for name in ("predictions.json", "truth.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_objects_are_not_in_the_memory_of_worker_processes() -> None:
    # Each such tensor keeps a file open: 25,000 files for COCO's test set.
    objects = draw_records(2)[1].objects
    copy = evaluator_module._copy_objects(objects)
    for name in ("boxes", "labels", "is_crowd", "areas", "ids"):
        assert getattr(copy, name).data_ptr() != getattr(objects, name).data_ptr()
        assert torch.equal(getattr(copy, name), getattr(objects, name))
    assert copy.masks == objects.masks
