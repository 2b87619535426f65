"""Results of detectors: metrics, files, examples and pages."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.csv_text import parse_csv
from c2fmae.core.distributed import World
from c2fmae.core.objects import Detections
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.best_checkpoint import BestScore
from c2fmae.eval.detection import evaluator as evaluator_module
from c2fmae.eval.detection.coco_format import ImageRecord
from c2fmae.eval.detection.config import DetectConfig
from c2fmae.eval.detection.evaluator import DetectorEvaluator
from c2fmae.eval.detection.examples import draw_examples
from c2fmae.eval.detection.prediction_store import DetectionStore
from c2fmae.eval.detection.report import make_detection_sections, write_detection_report
from c2fmae.eval.detection.result import (
    DETECT_RESULTS,
    write_detection_result,
)
from c2fmae.eval.detection.scores import DetectionScores, compute_scores
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.metrics import select_headlines
from c2fmae.eval.training_results import PREDICTIONS_DIR, TestRecord
from c2fmae.report import BarChart, HeatMap, LineChart, Table
from c2fmae.report.drawing import DrawnObject, Tile
from tests.eval.detection.object_scenes import GivenDetector, ObjectScenes, give_detections
from tests.eval.detection.random_records import CLASSES, draw_masks, draw_records

NAMES = [entry.name for entry in CLASSES]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectionScores]:
    """The directory of a run with a result, and its scores."""
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, write_result(run_dir, draw_records(12))


def write_result(run_dir: Path, records: Sequence[ImageRecord], *settings: str) -> DetectionScores:
    """Test a detector with given detections, and write its result and its page."""
    config = DetectConfig.from_dict({"init": "runs/b"}, settings)
    testing, result_dir = config.testing, DETECT_RESULTS.locate_dir(run_dir)
    scenes = ObjectScenes(list(records))
    store = DetectionStore(result_dir / PREDICTIONS_DIR, DETECT_RESULTS.identify_predictions("w", "t", testing))
    evaluator = DetectorEvaluator(scenes, testing, World(), num_workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator_module, "detect_objects", give_detections)
        scores = evaluator.evaluate(GivenDetector(list(records)), store=store)
    identity = DETECT_RESULTS.identify_result("w", "t", testing)
    write_detection_result(
        TestRecord(result_dir, "tiny", "Tested on ellipses.", identity, "random weights", world_size=1),
        config,
        scores,
        CLASSES,
        scenes,
        store,
        average_scores=scores,
        best=BestScore(7, 0.5),
    )
    return scores


def test_results_have_the_metrics_of_coco(written: tuple[Path, DetectionScores]) -> None:
    run_dir, scores = written
    assert scores.mask is not None
    metrics = DETECT_RESULTS.read(run_dir).metrics
    assert len(metrics) == 2 * 2 * 12 + 1
    first, last = metrics[0], metrics[-1]
    assert first.label == "box: AP"
    assert first.value == 100 * (scores.box.metrics["AP"] or 0)
    assert first.interval is not None
    assert first.interval[0] < first.value < first.interval[1]
    assert first.notes == (f"{scores.num_objects} objects of 3 of 4 classes",)
    assert [metric.label for metric in metrics if metric.interval] == [
        f"{kind}: {name}{weights}"
        for weights in ("", ", averaged weights")
        for kind in ("box", "mask")
        for name in ("AP", "AP50", "AP75")
    ]
    assert (last.label, last.value) == ("box: best AP", 50)
    assert [metric.label for metric in select_headlines(metrics)][:2] == ["box: AP", "mask: AP"]
    document = json.loads((DETECT_RESULTS.locate_dir(run_dir) / "results.json").read_text())
    assert document["coco"] == {"box": scores.box.metrics, "mask": scores.mask.metrics}
    assert document["errors"] == scores.error_counts


def test_the_best_ap_is_that_of_the_objects_that_choose_the_checkpoint(tmp_path: Path) -> None:
    write_result(tmp_path, draw_records(4), "select_by=mask", "testing.intervals=0")
    assert DETECT_RESULTS.read(tmp_path).metrics[-1].label == "mask: best AP"


def test_metrics_of_sizes_that_no_object_has_are_null_and_dashes(tmp_path: Path) -> None:
    records = [_drop_larger_objects(record) for record in draw_records(8)]
    scores = write_result(tmp_path, records, "testing.intervals=0")
    result_dir = DETECT_RESULTS.locate_dir(tmp_path)
    assert scores.size_objects == (scores.num_objects, 0, 0)
    document = json.loads((result_dir / "results.json").read_text())
    assert document["coco"]["box"]["APl"] is document["coco"]["mask"]["ARm"] is None
    metrics = DETECT_RESULTS.read(tmp_path).metrics
    assert {"ap_large", "ar_medium"}.isdisjoint(metric.key for metric in metrics)
    assert not any(metric.interval for metric in metrics)
    rows = parse_csv((result_dir / "sizes.csv").read_text())
    assert [row["box AP"] == "" for row in rows] == [False, True, True, False]
    table = next(section for section in make_detection_sections(result_dir) if isinstance(section, Table))
    assert table.rows[1] == ("medium", "0", "–", "–", "–", "–")
    assert "-1" not in "".join(map(str, table.rows))


def _drop_larger_objects(record: ImageRecord) -> ImageRecord:
    return replace(record, objects=record.objects.select(record.objects.areas < 1024))


def test_tables_hold_the_scores(written: tuple[Path, DetectionScores]) -> None:
    run_dir, scores = written
    result_dir = DETECT_RESULTS.locate_dir(run_dir)
    rows = parse_csv((result_dir / "classes.csv").read_text())
    assert [row["name"] for row in rows] == NAMES
    assert [int(row["objects"]) for row in rows] == scores.class_objects.tolist()
    assert [row["mask AP50"] for row in rows][3] == ""
    assert [float(row["box AP"]) for row in rows[:3]] == pytest.approx(
        [100 * (value or 0) for value in scores.box.class_ap[:3]], abs=0.005
    )
    confusion = parse_csv((result_dir / "confusion.csv").read_text())
    assert [[int(count) for count in [*row.values()][1:]] for row in confusion] == scores.confusion.tolist()
    assert list(confusion[0]) == ["truth / predicted", *NAMES, "missed"]
    curves = parse_csv((result_dir / "curves.csv").read_text())
    assert len(curves) == 2 * (1 + 3) * 101
    dogs = [float(row["precision at IoU 0.75"]) for row in curves if (row["kind"], row["class"]) == ("box", "dog")]
    assert dogs == pytest.approx(scores.box.curves[1, :, 1].tolist(), abs=1e-4)
    means = [float(row["precision at IoU 0.5"]) for row in curves[:101]]
    assert 100 * np.mean(means) == pytest.approx(100 * (scores.box.metrics["AP50"] or 0), abs=0.01)


def test_results_are_identified_by_weights_data_and_settings(tmp_path: Path) -> None:
    testing = DetectionTestingConfig(intervals=0)
    write_result(tmp_path, draw_records(3), "testing.intervals=0")
    assert DETECT_RESULTS.find(tmp_path, DETECT_RESULTS.identify_result("w", "t", testing)) is not None
    engine = testing.model_copy(update={"engine": "pycocotools"})
    assert DETECT_RESULTS.find(tmp_path, DETECT_RESULTS.identify_result("w", "t", engine)) is not None
    for changed in (
        DETECT_RESULTS.identify_result("v", "t", testing),
        DETECT_RESULTS.identify_result("w", "s", testing),
        DETECT_RESULTS.identify_result("w", "t", DetectionTestingConfig(confusion_score=0.5)),
        DETECT_RESULTS.identify_result("w", "t", DetectionTestingConfig(canvas=512)),
    ):
        assert DETECT_RESULTS.find(tmp_path, changed) is None
        assert DETECT_RESULTS.locate_dir(tmp_path, changed) != DETECT_RESULTS.locate_dir(tmp_path)
    scored_otherwise = DetectionTestingConfig(intervals=7, confusion_score=0.5, engine="faster")
    assert DETECT_RESULTS.identify_predictions("w", "t", scored_otherwise) == DETECT_RESULTS.identify_predictions(
        "w", "t", testing
    )
    assert DETECT_RESULTS.identify_predictions(
        "w", "t", DetectionTestingConfig(canvas=512)
    ) != DETECT_RESULTS.identify_predictions("w", "t", testing)


def test_examples_have_colours_for_hits_misses_and_false_alarms(tmp_path: Path) -> None:
    boxes = torch.tensor([[20.0, 30, 80, 90], [120, 30, 180, 90]])
    (record,) = draw_records(1, extra=0)
    objects = replace(
        record.objects,
        boxes=boxes,
        labels=torch.tensor([0, 1]),
        is_crowd=torch.tensor([False, False]),
        areas=torch.tensor([3600.0, 3600]),
        ids=torch.arange(2),
        masks=draw_masks(boxes.numpy()),
    )
    places = torch.tensor([[20.0, 30, 80, 90], [100, 95, 160, 155], [0, 0, 9, 9]])
    detections = replace(
        record.detections,
        boxes=places,
        scores=torch.tensor([0.9, 0.8, 0.2]),
        labels=torch.tensor([0, 2, 2]),
        masks=draw_masks(places.numpy()),
    )
    record = replace(record, objects=objects, detections=detections)
    scenes, store = ObjectScenes([record]), DetectionStore(tmp_path, {})
    with store.open_writer(World()) as writer:
        writer.write(record.key, record.size, detections)
    scores = compute_scores([record], CLASSES, DetectionTestingConfig())
    sheet = draw_examples(scenes, store, scores, NAMES, min_score=0.3)
    assert sheet is not None
    pixels = np.asarray(sheet.convert("RGB"))
    middle = pixels.shape[1] - 24 - 320 - 5  # between the last two tiles
    for colour, in_truth, in_detections in (
        ((52, 143, 104), True, True),  # the cat
        ((214, 48, 49), True, False),  # the dog
        ((240, 140, 0), False, True),  # the bird
    ):
        columns = np.flatnonzero((pixels == colour).all(axis=2).any(axis=0))
        assert (bool((columns < middle).any()), bool((columns > middle).any())) == (in_truth, in_detections)
    nothing = replace(
        scores, image_quality=torch.tensor([torch.nan]).double(), image_counts=torch.zeros(1, 3, dtype=torch.int64)
    )
    assert draw_examples(scenes, store, nothing, NAMES, min_score=0.3) is None


def test_detections_with_higher_scores_are_drawn_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = draw_records(1, extra=0)
    boxes = torch.tensor([[10.0, 10, 90, 90], [20, 20, 80, 80], [0, 0, 60, 60], [30, 30, 40, 40]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.7])
    detections = Detections(boxes, scores, torch.arange(4) % 3, draw_masks(boxes.numpy()))
    with DetectionStore(tmp_path, {}).open_writer(World()) as writer:
        writer.write(record.key, record.size, detections)
    drawn: list[list[str]] = []

    def record_captions(pixels: Tile, objects: Sequence[DrawnObject]) -> Tile:
        drawn.append([shown.caption for shown in objects])
        return pixels

    monkeypatch.setattr("c2fmae.eval.detection.examples.draw_objects", record_captions)
    quality = replace(compute_scores([record], CLASSES, DetectionTestingConfig()), image_quality=torch.ones(1).double())
    draw_examples(ObjectScenes([record]), DetectionStore(tmp_path, {}), quality, NAMES, min_score=0.3)
    assert [caption.split()[-1] for caption in drawn[1]] == ["0.50", "0.70", "0.90"]


def test_pages_are_written_from_files(tmp_path: Path, written: tuple[Path, DetectionScores]) -> None:
    run_dir = RunDir(written[0])
    result_dir = DETECT_RESULTS.locate_dir(run_dir.path)
    sections = make_detection_sections(result_dir)
    sizes, classes = (section for section in sections if isinstance(section, BarChart))
    assert [name for name, _ in sizes.groups] == ["small", "medium", "large", "all"]
    values = [scores[0] for _, scores in classes.groups]
    assert len(values) == 3
    assert values == sorted(values, key=lambda value: -(value or 0))
    curves = [section for section in sections if isinstance(section, LineChart)]
    assert [curve.title for curve in curves] == ["Precision of boxes", "Precision of masks"]
    assert list(curves[0].series) == ["IoU 0.5", "IoU 0.75", "IoU 0.95"]
    assert all(len(points) == 101 for points in curves[0].series.values())
    (heat_map,) = (section for section in sections if isinstance(section, HeatMap))
    assert set(heat_map.row_names) <= set(NAMES)
    with Image.open(result_dir / "pictures" / "examples.png") as image:
        assert image.width > 3 * 320
    assert (result_dir / "report.html").read_text().count("<img") == 1
    assert make_detection_sections(tmp_path) == []

    names = ("loss", "loss/mask", "loss/rpn_box", "test/box_AP", "test/mask_AP", "test/box_AP50", "average/box_AP")
    rows = [{"step": step, **dict.fromkeys(names, step)} for step in (1, 2)]
    run_dir.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run_dir.config_path.write_text("kind: detection\n")
    run_dir.environment_path.write_text("{}")
    write_detection_report(run_dir, result_dir, "scratch")
    page = run_dir.report.read_text()
    for text in (
        "Initial weights: scratch.",
        "2.00 %",
        "AP of boxes, %",
        "AP of masks, %",
        "averaged weights",
        "rpn box",
        "Classes that do not occur in the test images: unicorn.",
        "Most confused pairs",
        "badly placed",
        "Tested on ellipses.",
        "c2fmae eval detect RUN",
    ):
        assert text in page, text


def test_pages_of_detectors_without_masks_show_boxes_only(tmp_path: Path) -> None:
    records = draw_records(6, has_masks=False)
    scores = write_result(tmp_path, records, "mask_head=null")
    assert list(scores.kinds) == ["box"]
    sections = make_detection_sections(DETECT_RESULTS.locate_dir(tmp_path))
    assert [section.title for section in sections if isinstance(section, LineChart)] == ["Precision of boxes"]
    assert "mask" not in (DETECT_RESULTS.locate_dir(tmp_path) / "classes.csv").read_text()
