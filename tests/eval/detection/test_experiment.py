"""Trainings of detectors: results, resuming, processes, frozen backbones, tests of finished runs and errors."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.objects import Detections
from c2fmae.core.run_dir import RunDir
from c2fmae.core.run_info import read_run_info
from c2fmae.eval.detection import evaluator as evaluator_module
from c2fmae.eval.detection.config import DetectConfig, DetectionDataConfig
from c2fmae.eval.detection.experiment import Detection, build_detection, detect
from c2fmae.eval.detection.prediction import detect_objects
from c2fmae.eval.detection.result import DETECT_RESULTS
from c2fmae.models.backbones import load_backbone
from c2fmae.models.detectors import load_detector
from tests.eval.detection.tiny_detection import make_quick_config, write_rectangles, write_source, write_yolo_boxes
from tests.eval.training_processes import run_steps, run_steps_in_two_processes

pytestmark = [pytest.mark.numeric, pytest.mark.unchecked]


@pytest.fixture(scope="module", autouse=True)
def without_examples() -> Iterator[None]:
    """Draw no examples, which takes longer than the trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("c2fmae.eval.detection.result.draw_examples", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def finished_run(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averaged weights."""
    run = tmp_path_factory.mktemp("run") / "run"
    detect(make_quick_config(source, data, "training.ema=0.5"), run, World())
    return run


def load_tensors(run_dir: Path, step: int = 4) -> dict[str, Tensor]:
    return dict(load_checkpoint(run_dir / "checkpoints" / f"step-{step:08d}").tensors)


def count_predictions(monkeypatch: pytest.MonkeyPatch, *, limit: int = 1000) -> list[int]:
    """Count the images in which objects are detected, and fail after some; the list has an item for each."""
    counted: list[int] = []

    def detect_and_count(*args: Any, **kwargs: Any) -> Detections:
        if len(counted) == limit:
            raise KeyboardInterrupt
        counted.append(1)
        return detect_objects(*args, **kwargs)

    monkeypatch.setattr(evaluator_module, "detect_objects", detect_and_count)
    return counted


def test_a_run_writes_rows_the_best_checkpoint_and_a_result(finished_run: Path, source: Path) -> None:
    rows = read_rows(RunDir(finished_run).metrics)
    evaluated = [row for row in rows if "test/box_AP" in row]
    assert [row["step"] for row in evaluated] == [2, 4]
    assert all({"test/mask_AP", "test/box_AP50", "average/box_AP"} <= row.keys() for row in evaluated)
    names = {"loss/objectness", "loss/rpn_box", "loss/class", "loss/box", "loss/mask"}
    assert all(names <= row.keys() or "loss" not in row for row in rows)
    document = json.loads((finished_run / "evaluations/detect/results.json").read_text())
    assert f"from {source}; batch 4, AdamW" in document["protocol"]
    assert "the last weights are the result" in document["protocol"].lower()
    assert load_detector(finished_run / "best").num_classes == 2
    assert (finished_run / "report.html").exists()


def test_a_run_describes_its_detector_and_can_be_loaded(finished_run: Path) -> None:
    info = read_run_info(finished_run)
    assert (info.kind, info.step, info.num_samples) == ("detection", 4, 8)
    detector = load_detector(finished_run)
    assert info.detector == detector.spec
    assert [entry.name for entry in detector.spec.classes] == ["red", "blue"]
    assert load_backbone(finished_run).depth == 2
    tensors = load_tensors(finished_run)
    assert all(torch.equal(tensors[f"model/{name}"], tensor) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_interrupted_at_any_step_resumes_bitwise(
    finished_run: Path, source: Path, data: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_quick_config(source, data, "training.ema=0.5", "saving.steps=1", "saving.keep_last=9")
    evaluate = Detection.evaluate

    def interrupt(self: Detection, training: TrainingState, *args: Any, **kwargs: Any) -> None:
        evaluate(self, training, *args, **kwargs)
        if training.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Detection, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            detect(config, tmp_path, World())
    detect(config, tmp_path, World(), resume=True)
    ours, theirs = load_tensors(tmp_path), load_tensors(finished_run)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished_run / "metrics.jsonl").read_bytes()
    assert [path.name for path in list_checkpoints(tmp_path / "best")] == [
        path.name for path in list_checkpoints(finished_run / "best")
    ]


def test_a_final_test_that_was_interrupted_keeps_its_detections(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_quick_config(source, data, "watching.held_out_every=4")
    with monkeypatch.context() as patch:
        count_predictions(patch, limit=3)
        with pytest.raises(KeyboardInterrupt):
            detect(config, tmp_path, World())
    counted = count_predictions(monkeypatch)
    detect(config, tmp_path, World(), resume=True)
    assert len(counted) == 1
    assert DETECT_RESULTS.read(tmp_path).metrics[0].count == 4


def test_a_finished_run_is_tested_again_without_training(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, counted = load_tensors(finished_run), count_predictions(monkeypatch)
    config = DetectConfig.from_yaml(finished_run / "config.yaml", ["testing.score_threshold=0.2"])
    result = Detection.retest(config, finished_run, World())
    assert result.is_new
    first = json.loads((finished_run / "evaluations/detect/results.json").read_text())
    second = json.loads((result.result_dir / "results.json").read_text())
    assert first["weights"] == second["weights"]
    assert first["testing"] != second["testing"]
    assert "scores above 0.2" in result.protocol
    assert Detection.retest(config, finished_run, World()).is_new is False
    own = Detection.retest(DetectConfig.from_yaml(finished_run / "config.yaml"), finished_run, World())
    assert (own.is_new, own.result_dir) == (False, finished_run / "evaluations/detect")
    assert len(counted) == 4
    assert Detection.retest(config, finished_run, World(), recompute=True).is_new
    assert len(counted) == 8
    again = Detection.retest(config, finished_run, World(), step=4, recompute=True)
    assert again.is_new
    assert again.protocol.startswith(f"The detector of {finished_run}, step 4. ")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_tensors(finished_run).items())


def test_settings_of_the_scores_and_averaged_weights_use_stored_detections(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = count_predictions(monkeypatch)
    own = DETECT_RESULTS.read(finished_run)
    config = DetectConfig.from_yaml(finished_run / "config.yaml", ["testing.confusion_score=0.6"])
    scored = Detection.retest(config, finished_run, World())
    assert (scored.is_new, scored.result_dir != own.result_dir) == (True, True)
    assert scored.metrics == own.metrics[: len(scored.metrics)]
    averaged = Detection.retest(
        DetectConfig.from_yaml(finished_run / "config.yaml"), finished_run, World(), use_ema=True
    )
    expected = [metric.value for metric in own.metrics if metric.tags.get("weights") == "averaged"]
    assert [metric.value for metric in averaged.metrics] == expected
    assert counted == []


def test_a_recomputed_own_result_is_replaced_even_after_an_interruption(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    own, config = DETECT_RESULTS.read(tmp_path / "run"), DetectConfig.from_yaml(finished_run / "config.yaml")
    results = sorted((tmp_path / "run").glob("evaluations/*/results.json"))
    with monkeypatch.context() as patch:
        count_predictions(patch, limit=3)
        with pytest.raises(KeyboardInterrupt):
            Detection.retest(config, tmp_path / "run", World(), recompute=True)
    counted = count_predictions(monkeypatch)
    again = Detection.retest(config, tmp_path / "run", World())
    assert (len(counted), again.is_new) == (1, True)
    assert sorted((tmp_path / "run").glob("evaluations/*/results.json")) == results
    stored = DETECT_RESULTS.read(tmp_path / "run")
    assert (stored.protocol, stored.source, stored.metrics) == (own.protocol, own.source, own.metrics)
    assert Detection.retest(config, tmp_path / "run", World()).is_new is False


def test_an_unfinished_run_is_not_tested(finished_run: Path, tmp_path: Path) -> None:
    config = DetectConfig.from_yaml(finished_run / "config.yaml")
    with pytest.raises(UserError) as caught:
        Detection.retest(config, tmp_path, World())
    assert str(caught.value) == (
        f"{tmp_path}: is not finished. Resume it first: c2fmae eval detect {tmp_path} --resume"
    )


@pytest.mark.unchecked
def test_two_processes_with_micro_batches_equal_one(source: Path, data: Path, tmp_path: Path) -> None:
    """The learning rate is so small that weights stay: differences are those of losses and gradients."""
    config = make_quick_config(source, data, "training.lr=1e-30", "training.warmup_steps=0")
    one = run_steps(build_detection, config, World())
    two = run_steps_in_two_processes(build_detection, config.override(["training.micro_batch=1"]), tmp_path)
    for ours, theirs in zip(two["values"], one["values"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    for name, tensor in one["tensors"].items():
        torch.testing.assert_close(two["tensors"][name], tensor, rtol=1e-6, atol=1e-12)
    assert two["scores"].box.metrics == one["scores"].box.metrics


def test_a_frozen_backbone_does_not_change(source: Path, data: Path) -> None:
    experiment = build_detection(make_quick_config(source, data, "train_blocks=0"), World())
    before = {name: tensor.clone() for name, tensor in experiment.detector.state_dict().items()}
    training = TrainingState.create(experiment.detector, experiment.config.training)
    loop = TrainingLoop(experiment.task, experiment.config.training, experiment.plan)
    with experiment.open_batches(0) as batches:
        assert len(list(loop.run(training, batches))) == 4
    after = experiment.detector.state_dict()
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"pyramid", "rpn", "box_head", "mask_head"}
    trained = {name.split("/")[1].split(".")[0] for name in training.gather_tensors() if name.startswith("optimiser/")}
    assert trained == changed
    assert "the backbone frozen" in experiment.protocol


def test_data_with_boxes_only_trains_a_detector_without_masks(source: Path, tmp_path: Path) -> None:
    data = write_yolo_boxes(tmp_path / "data")
    sets = DetectionDataConfig.resolve_data_options(str(data / "data.yaml"), None)
    overrides = [f"data.{split}={path}" for split, path in sets.items()]
    config = make_quick_config(source, data, *overrides, "training.steps=1", "training.warmup_steps=0")
    detect(config, tmp_path / "run", World())
    detector = load_detector(tmp_path / "run")
    assert detector.mask_head is None
    assert DetectConfig.from_yaml(tmp_path / "run" / "config.yaml").mask_head is None
    protocol = DETECT_RESULTS.read(tmp_path / "run").protocol
    assert "; boxes only" in protocol
    assert ", 2 images without objects left out (6)" in protocol
    with pytest.raises(UserError, match="select_by: .* has boxes without masks. Set it to box"):
        build_detection(config.override(["select_by=mask"]), World())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("pyramid.norm=batch", "box_head.norm=batch", "training.micro_batch=2"),
            "pyramid.norm, box_head.norm: batch norms would use the statistics of a part of the step's images, divided "
            "over 2 micro-batches, so that the result depends on the division. Set pyramid.norm=group and "
            "box_head.norm=group, or accept this with norm_is_local=true",
        ),
        (("train_blocks=3",), "train_blocks: expected at most 2, the backbone's blocks, got 3"),
        (("data.test=null",), "test: is required. Use --data with a folder of train and val sets"),
        (
            ("relative=bias", "data.canvas=null"),
            "relative: the tables of 'bias' are for the patches of training images of one size, but images without a "
            "canvas have different sizes. Set data.canvas, as [1024,1024], or relative=none",
        ),
    ],
)
def test_settings_that_do_not_fit_are_rejected_before_the_first_step(
    source: Path, data: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_detection(make_quick_config(source, data, *settings), World())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pyramid.norm=group", "pyramid.norm: expected layer, as at the start of this run, got group"),
        ("rpn.samples_per_image=8", "rpn.samples_per_image: expected 32, as at the start of this run, got 8"),
        ("drop_path=0.3", "drop_path: expected 0.0, as at the start of this run, got 0.3"),
        ("data.canvas=[40, 40]", "data.canvas: expected (32, 32), as at the start of this run, got (40, 40)"),
    ],
)
def test_settings_of_the_detector_cannot_change_on_resume(
    finished_run: Path, source: Path, data: Path, setting: str, message: str
) -> None:
    config = make_quick_config(source, data, "training.ema=0.5", setting)
    with pytest.raises(UserError) as caught:
        detect(config, finished_run, World(), resume=True, accept_changes=True)
    assert str(caught.value) == f"{message}. Choose another --out"


def test_generated_scenes_are_overfitted(source: Path, tmp_path: Path) -> None:
    overrides = (
        "data.train={name: generated, options: {size: 32, length: 4, difficulty: plain, seed: 3}}",
        "data.test={name: generated, options: {size: 32, length: 3, difficulty: plain, seed: 3}}",
        "data.scale=[1, 1]",
        "data.flip=0",
        "data.cache=true",
        "training.batch_size=4",
        "training.steps=70",
        "training.warmup_steps=10",
        "training.lr=8e-3",
        "training.clip=1",
    )
    experiment = build_detection(make_quick_config(source, tmp_path, *overrides), World())
    training = TrainingState.create(experiment.detector, experiment.config.training)
    loop = TrainingLoop(experiment.task, experiment.config.training, experiment.plan)
    with experiment.open_batches(0) as batches:
        losses = [report.values["loss"] for report in loop.run(training, batches)]
    assert losses[-1] < losses[0] / 2
    scores = experiment.evaluator.evaluate(experiment.detector)
    assert scores.mask is not None
    assert (scores.box.metrics["AP50"] or 0) > 0.5
    assert (scores.mask.metrics["AP50"] or 0) > 0.5
