"""COCO's metrics equal those of pycocotools on the files that are written."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

from c2fmae.core.errors import UserError
from c2fmae.core.objects import Detections, Objects
from c2fmae.eval.detection import engines
from c2fmae.eval.detection.coco_format import CocoIds, ImageRecord, build_results, build_truth
from c2fmae.eval.detection.engines import COCO_KEYS, Engine, Kind, choose_engine, describe_engine, evaluate_coco
from tests.eval.detection.random_records import CLASSES, draw_records, rename_categories

ENGINES: tuple[Engine, ...] = ("pycocotools", "faster-coco-eval")


def run_pycocotools(truth_path: Path, results_path: Path, kind: Kind) -> list[float | None]:
    """Return the twelve numbers that pycocotools prints for two files; None for -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(truth_path)
        results = json.loads(results_path.read_text())
        if kind == "segm":  # else it takes the areas of boxes
            results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else float(value) for value in evaluation.stats]


def assert_equal_metrics(metrics: dict[str, float | None], expected: list[float | None]) -> None:
    values = [metrics[name] for name in COCO_KEYS]
    assert [value is None for value in values] == [value is None for value in expected]
    numbers, expected_numbers = ([np.nan if value is None else value for value in row] for row in (values, expected))
    np.testing.assert_allclose(numbers, expected_numbers, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("category_ids", [(1, 2, 3, 4), (3, 90, 7, 21)], ids=str)
def test_metrics_equal_those_of_pycocotools_on_the_files(
    tmp_path: Path, engine: Engine, category_ids: tuple[int, ...]
) -> None:
    records, classes = draw_records(12, decimals=2), rename_categories(category_ids)
    ids = CocoIds.choose([record.key for record in records], classes)
    truth, results = build_truth(records, ids, classes), build_results(records, ids)
    for name, document in (("truth", truth), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    kinds: tuple[Kind, ...] = ("bbox", "segm")
    for kind in kinds:
        expected = run_pycocotools(tmp_path / "truth.json", tmp_path / "results.json", kind)
        assert None not in expected
        assert 0.1 < (expected[0] or 0) < 0.9  # not trivial
        assert_equal_metrics(evaluate_coco(truth, results, kind, engine).compute_metrics(), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_without_objects_are_none_and_without_detections_zero(engine: Engine) -> None:
    records = draw_records(4)
    ids = CocoIds.choose([record.key for record in records], CLASSES)
    truth, results = build_truth(records, ids, CLASSES), build_results(records, ids)
    without_objects = {**truth, "annotations": []}
    kinds: tuple[Kind, ...] = ("bbox", "segm")
    for kind in kinds:
        for detections in (results, []):
            metrics = evaluate_coco(without_objects, detections, kind, engine).compute_metrics()
            assert set(metrics.values()) == {None}
        metrics = evaluate_coco(truth, [], kind, engine).compute_metrics()
        assert metrics["AP"] == metrics["AR100"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_sizes_without_an_object_have_no_metrics(engine: Engine) -> None:
    boxes = torch.tensor([[10.0, 10, 20, 20]])
    objects = Objects(boxes, torch.tensor([0]), torch.tensor([False]), torch.tensor([100.0]), torch.tensor([0]))
    record = ImageRecord(0, "one", (200, 200), objects, Detections(boxes, torch.tensor([0.9]), torch.tensor([0])))
    ids = CocoIds.choose(["one"], CLASSES)
    metrics = evaluate_coco(
        build_truth([record], ids, CLASSES), build_results([record], ids), "bbox", engine
    ).compute_metrics()
    assert [name for name, value in metrics.items() if value is None] == ["APm", "APl", "ARm", "ARl"]
    assert metrics["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_than_a_hundred_detections_of_a_class_are_cut_not_an_error(engine: Engine) -> None:
    # COCO's tools return -1 for AP if they are given another limit than 100.
    record = draw_records(2, extra=0)[1]
    boxes = record.objects.boxes[:1].repeat(150, 1) + torch.arange(150.0)[:, None] / 50
    detections = Detections(boxes, torch.linspace(0.9, 0.1, 150), record.objects.labels[:1].repeat(150))
    record = replace(record, row=0, objects=replace(record.objects, masks=None), detections=detections)
    first = replace(record, detections=Detections(boxes[:100], detections.scores[:100], detections.labels[:100]))
    ids = CocoIds.choose([record.key], CLASSES)
    truth = build_truth([record], ids, CLASSES)
    many, few = (
        evaluate_coco(truth, build_results([entry], ids), "bbox", engine).compute_metrics() for entry in (record, first)
    )
    assert many == few
    assert many["AP"] is not None
    assert many["AP"] > 0


def test_areas_of_masks_are_not_those_of_their_boxes() -> None:
    # pycocotools takes a detection's box for its size if it has both, so masks would be small, medium or large by it.
    records = draw_records(12)
    ids = CocoIds.choose([record.key for record in records], CLASSES)
    truth, results = build_truth(records, ids, CLASSES), build_results(records, ids)
    without_boxes = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    both, masks_only = (
        evaluate_coco(truth, entries, "segm", "pycocotools").compute_metrics() for entries in (results, without_boxes)
    )
    assert both == masks_only


def test_pycocotools_prints_nothing_and_files_are_not_changed(capsys: pytest.CaptureFixture[str]) -> None:
    records = draw_records(3)
    ids = CocoIds.choose([record.key for record in records], CLASSES)
    truth, results = build_truth(records, ids, CLASSES), build_results(records, ids)
    before = json.dumps([truth, results])
    for engine in ENGINES:
        evaluate_coco(truth, results, "segm", engine)
    assert json.dumps([truth, results]) == before
    assert capsys.readouterr() == ("", "")


def test_the_engine_is_the_faster_one_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("auto") == choose_engine("faster") == "faster-coco-eval"
    assert choose_engine("pycocotools") == "pycocotools"
    assert describe_engine("pycocotools").startswith("pycocotools 2.")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert choose_engine("auto") == "pycocotools"
    with pytest.raises(UserError, match=r"not installed. Run pip install 'c2fmae\[fast-eval\]'"):
        choose_engine("faster")


def test_boxes_of_files_are_exact() -> None:
    records = draw_records(5, seed=3)
    ids = CocoIds.choose([record.key for record in records], CLASSES)
    results = json.loads(json.dumps(build_results(records, ids)))
    boxes = np.array([result["bbox"] for result in results])
    boxes[:, 2:] += boxes[:, :2]
    expected = torch.cat([record.detections.boxes for record in records])
    assert torch.equal(torch.from_numpy(boxes).float(), expected)
