import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.config import Config
from c2fmae.core.csv_text import parse_csv
from c2fmae.core.distributed import World
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.best_checkpoint import BestScore
from c2fmae.eval.examples import choose_examples
from c2fmae.eval.results import load_result
from c2fmae.eval.segmentation.evaluator import SegmenterEvaluator
from c2fmae.eval.segmentation.examples import draw_examples
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.eval.segmentation.report import make_segmentation_sections, write_segmentation_report
from c2fmae.eval.segmentation.result import (
    SEGMENT_RESULTS,
    write_segmentation_result,
)
from c2fmae.eval.segmentation.scores import SegmentationScores
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.eval.training_results import PREDICTIONS_DIR, TestRecord
from c2fmae.report import BarChart, HeatMap, Table
from tests.eval.segmentation.tiny_segmenters import CLASSES, MapScenes, draw_map_scenes, tiny_segmenter


def write_result(run_dir: Path, scenes: MapScenes, testing: TestingConfig) -> SegmentationScores:
    """Test a tiny segmenter, and write its result and its page."""
    result_dir = SEGMENT_RESULTS.locate_dir(run_dir)
    store = PredictionStore(result_dir / PREDICTIONS_DIR, SEGMENT_RESULTS.identify_predictions("w", "t", testing))
    scores = SegmenterEvaluator(scenes, testing, World(), num_workers=0).evaluate(tiny_segmenter(), store=store)
    identity = SEGMENT_RESULTS.identify_result("w", "t", testing)
    write_segmentation_result(
        TestRecord(result_dir, "tiny", "Tested on blobs.", identity, "random weights", world_size=1),
        Config(),
        scores,
        CLASSES,
        scenes,
        store,
        average_scores=scores,
        best=BestScore(7, 0.5),
    )
    return scores


def test_files_hold_the_scores(tmp_path: Path) -> None:
    scores = write_result(tmp_path, draw_map_scenes(6), TestingConfig())
    result = SEGMENT_RESULTS.read(tmp_path)
    assert [metric.label for metric in result.metrics] == [
        "mIoU",
        "mean accuracy of classes",
        "pixel accuracy",
        "mIoU, averaged weights",
        "mean accuracy of classes, averaged weights",
        "pixel accuracy, averaged weights",
        "best mIoU",
    ]
    first = result.metrics[0]
    assert first.value == 100 * scores.mean_iou
    assert first.interval is not None
    assert first.interval[0] < first.value < first.interval[1]
    assert first.notes == ("4 of 4 classes occur or are predicted",)

    result_dir = SEGMENT_RESULTS.locate_dir(tmp_path)
    rows = parse_csv((result_dir / "classes.csv").read_text())
    assert [row["name"] for row in rows] == [entry.name for entry in CLASSES]
    assert [int(row["pixels"]) for row in rows] == scores.totals[1].tolist()
    assert [float(row["IoU"]) for row in rows] == pytest.approx([100 * iou for iou in scores.ious.tolist()], abs=0.005)
    counts = scores.confusion.clone().fill_diagonal_(0)
    assert [row["mistaken for"] for row in rows] == [CLASSES[int(row.argmax())].name for row in counts]
    confusion = [[int(n) for n in [*row.values()][1:]] for row in parse_csv((result_dir / "confusion.csv").read_text())]
    assert confusion == scores.confusion.tolist()
    document = json.loads((result_dir / "results.json").read_text())
    assert [entry["iou"] for entry in document["classes"]] == [100 * iou for iou in scores.ious.tolist()]


def test_a_class_that_does_not_occur_has_no_score(tmp_path: Path) -> None:
    scenes = draw_map_scenes(3)
    for index in range(3):
        scenes[index].maps["semantic"][scenes[index].maps["semantic"] == 3] = 255
    scores = write_result(tmp_path, scenes, TestingConfig())
    document = json.loads((SEGMENT_RESULTS.locate_dir(tmp_path) / "results.json").read_text())
    assert document["classes"][3]["accuracy"] is None
    assert document["classes"][3]["iou"] == (0 if scores.totals[2, 3] else None)
    page = (SEGMENT_RESULTS.locate_dir(tmp_path) / "report.html").read_text()
    assert "Classes that do not occur in the test images: cat." in page


def test_results_are_identified_by_weights_data_and_settings(tmp_path: Path) -> None:
    testing = TestingConfig()
    write_result(tmp_path, draw_map_scenes(2), testing)
    assert SEGMENT_RESULTS.find(tmp_path, SEGMENT_RESULTS.identify_result("w", "t", testing)) is not None
    same = TestingConfig(batch_size=1)
    assert SEGMENT_RESULTS.find(tmp_path, SEGMENT_RESULTS.identify_result("w", "t", same)) is not None
    for changed in (
        SEGMENT_RESULTS.identify_result("v", "t", testing),
        SEGMENT_RESULTS.identify_result("w", "s", testing),
        SEGMENT_RESULTS.identify_result("w", "t", TestingConfig(flip=True)),
    ):
        assert SEGMENT_RESULTS.find(tmp_path, changed) is None
        assert SEGMENT_RESULTS.locate_dir(tmp_path, changed) != SEGMENT_RESULTS.locate_dir(tmp_path)
    (tmp_path / "evaluations" / "segment-broken").mkdir()
    (tmp_path / "evaluations" / "segment-broken" / "results.json").write_text("[")
    assert SEGMENT_RESULTS.find(tmp_path, SEGMENT_RESULTS.identify_result("v", "t", testing)) is None


def test_examples_are_the_best_the_median_and_the_worst() -> None:
    ious = torch.tensor([0.1 * n for n in range(13)] + [torch.nan]).double()
    chosen = choose_examples(ious.flip(0))
    assert [round(10 * ious.flip(0)[index].item()) for index in chosen["best"]] == [12, 11, 10, 9]
    assert [round(10 * ious.flip(0)[index].item()) for index in chosen["median"]] == [8, 7, 6, 5]
    assert [round(10 * ious.flip(0)[index].item()) for index in chosen["worst"]] == [3, 2, 1, 0]
    for count in range(12):
        indices = [index for group in choose_examples(ious[:count]).values() for index in group]
        assert len(indices) == len(set(indices)) >= min(count, 2)
    assert choose_examples(torch.full((3,), 0.5).double()) == {"best": [0], "median": [1], "worst": [2]}


def test_errors_are_drawn_where_the_prediction_is_wrong(tmp_path: Path) -> None:
    scenes = MapScenes([draw_map_scenes(2)[1]])
    truth = scenes[0].maps["semantic"]
    predicted = truth.clone()
    predicted[truth == 255] = 3
    predicted[16:, 16:] = (truth[16:, 16:] + 1) % 4
    store = PredictionStore(tmp_path, {})
    with store.open_writer() as writer:
        writer.write(scenes[0].key, predicted)
    sheet = draw_examples(scenes, store, torch.tensor([0.5]).double(), ["sky", "sea", "tree", "cat"])
    assert sheet is not None
    is_red = (np.asarray(sheet.convert("RGB")) == (214, 48, 49)).all(axis=2)
    assert is_red.sum() == 104 * 104  # a quarter of a tile of 208 pixels
    assert draw_examples(scenes, store, torch.tensor([torch.nan]).double(), []) is None


def test_pages_are_written_from_files(tmp_path: Path) -> None:
    write_result(tmp_path, draw_map_scenes(6), TestingConfig())
    result_dir = SEGMENT_RESULTS.locate_dir(tmp_path)
    sections = make_segmentation_sections(result_dir)
    (chart,) = (section for section in sections if isinstance(section, BarChart))
    values = [group[1][0] for group in chart.groups]
    assert values == sorted(values, key=lambda iou: -(iou or 0))
    (heat_map,) = (section for section in sections if isinstance(section, HeatMap))
    assert set(heat_map.row_names) <= {entry.name for entry in CLASSES}
    (pairs,) = (section for section in sections if isinstance(section, Table))
    assert len(pairs.rows) == min(12, sum(count != "0" for count in _off_diagonal(result_dir)))
    with Image.open(result_dir / "pictures" / "examples.png") as image:
        assert image.width > 5 * 208
    page = (result_dir / "report.html").read_text()
    assert page.count("<img") == 1
    assert make_segmentation_sections(tmp_path) == []

    run_dir = RunDir(tmp_path)
    names = ("loss", "loss/main", "loss/auxiliary", "test/mIoU", "test/mAcc", "test/aAcc")
    rows = [{"step": step, **dict.fromkeys(names, step)} for step in (1, 2)]
    run_dir.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run_dir.config_path.write_text("kind: segmentation\n")
    run_dir.environment_path.write_text("{}")
    write_segmentation_report(run_dir, result_dir, "scratch")
    page = run_dir.report.read_text()
    for text in (
        "Initial weights: scratch.",
        "2.00 %",
        "mIoU, %",
        "auxiliary head",
        "IoU of classes",
        "Most confused pairs",
        "Examples",
    ):
        assert text in page
    assert load_result(result_dir).protocol in page


def _off_diagonal(result_dir: Path) -> list[str]:
    rows = [[*row.values()][1:] for row in parse_csv((result_dir / "confusion.csv").read_text())]
    return [count for i, row in enumerate(rows) for j, count in enumerate(row) if i != j]
