"""Trainings of segmenters: results, resuming, processes, frozen backbones, tests of finished runs and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.core.run_info import read_run_info
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.segmentation.experiment import Segmentation, build_segmentation, segment
from c2fmae.eval.segmentation.prediction import predict_ids
from c2fmae.eval.segmentation.result import SEGMENT_RESULTS
from c2fmae.models.backbones import load_backbone
from c2fmae.models.segmenters import load_segmenter
from tests.eval.segmentation.tiny_segmentation import make_quick_config, write_halves, write_source
from tests.eval.training_processes import run_steps, run_steps_in_two_processes

pytestmark = [pytest.mark.numeric, pytest.mark.unchecked]

PREDICTIONS = Path("evaluations/segment/predictions")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_halves(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def finished_run(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averaged weights and batch norms."""
    run = tmp_path_factory.mktemp("run") / "run"
    segment(make_quick_config(source, data, "training.ema=0.5", "norm=batch"), run, World())
    return run


def load_tensors(run_dir: Path, step: int = 4) -> dict[str, Tensor]:
    return dict(load_checkpoint(run_dir / "checkpoints" / f"step-{step:08d}").tensors)


def count_predictions(monkeypatch: pytest.MonkeyPatch, *, limit: int = 1000) -> list[int]:
    """Count predictions of images, and fail after some of them; the list has an item for each."""
    counted: list[int] = []

    def predict_and_count(*args: Any, **kwargs: Any) -> Tensor:
        if len(counted) == limit:
            raise KeyboardInterrupt
        counted.append(1)
        return predict_ids(*args, **kwargs)

    monkeypatch.setattr("c2fmae.eval.segmentation.evaluator.predict_ids", predict_and_count)
    return counted


def test_a_run_writes_rows_the_best_checkpoint_and_a_result(finished_run: Path, source: Path) -> None:
    rows = read_rows(RunDir(finished_run).metrics)
    evaluated = [row for row in rows if "test/mIoU" in row]
    assert [row["step"] for row in evaluated] == [2, 4]
    assert all({"test/mAcc", "test/aAcc", "average/mIoU"} <= row.keys() for row in evaluated)
    assert all({"loss/main", "loss/auxiliary"} <= row.keys() for row in rows if "loss" in row)
    metrics = {metric.label: metric for metric in SEGMENT_RESULTS.read(finished_run).metrics}
    assert metrics["mIoU"].value == pytest.approx(evaluated[-1]["test/mIoU"])
    assert metrics["mIoU, averaged weights"].value == pytest.approx(evaluated[-1]["average/mIoU"])
    best = max(max(row["test/mIoU"], row["average/mIoU"]) for row in evaluated)
    assert metrics["best mIoU"].value == pytest.approx(best)
    assert load_segmenter(finished_run / "best").num_classes == 3
    assert len(list((finished_run / PREDICTIONS).glob("*.png"))) == 6
    document = json.loads((finished_run / "evaluations/segment/results.json").read_text())
    assert f"from {source}; batch 8, AdamW" in document["protocol"]
    assert "the last weights are the result" in document["protocol"].lower()
    assert "mIoU" in (finished_run / "report.html").read_text()


def test_a_run_describes_its_segmenter_and_can_be_loaded(finished_run: Path) -> None:
    info = read_run_info(finished_run)
    assert (info.kind, info.step, info.num_samples) == ("segmentation", 4, 16)
    segmenter = load_segmenter(finished_run)
    assert info.segmenter == segmenter.spec
    assert [entry.name for entry in segmenter.spec.classes] == ["one", "two", "three"]
    assert load_backbone(finished_run).depth == 2
    tensors = load_tensors(finished_run)
    assert all(torch.equal(tensors[f"model/{name}"], tensor) for name, tensor in segmenter.state_dict().items())
    averaged = load_segmenter(finished_run, use_ema=True).state_dict()
    name = "head.bottleneck.norm.running_mean"
    assert torch.equal(averaged[name], tensors[f"ema/{name}"])
    assert not torch.equal(averaged[name], tensors[f"model/{name}"])
    assert averaged["head.bottleneck.norm.num_batches_tracked"] == 4


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_interrupted_at_any_step_resumes_bitwise(
    finished_run: Path, source: Path, data: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_quick_config(source, data, "training.ema=0.5", "norm=batch", "saving.steps=1", "saving.keep_last=9")
    evaluate = Segmentation.evaluate

    def interrupt(self: Segmentation, training: TrainingState, *args: Any, **kwargs: Any) -> None:
        evaluate(self, training, *args, **kwargs)
        if training.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Segmentation, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            segment(config, tmp_path, World())
    segment(config, tmp_path, World(), resume=True)
    ours, theirs = load_tensors(tmp_path), load_tensors(finished_run)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished_run / "metrics.jsonl").read_bytes()
    assert [path.name for path in list_checkpoints(tmp_path / "best")] == [
        path.name for path in list_checkpoints(finished_run / "best")
    ]


def test_a_test_that_was_interrupted_keeps_its_predictions(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_quick_config(source, data, "watching.held_out_every=4")
    with monkeypatch.context() as patch:
        count_predictions(patch, limit=4)
        with pytest.raises(KeyboardInterrupt):
            segment(config, tmp_path, World())
    assert len(list((tmp_path / PREDICTIONS).glob("*.png"))) == 4
    with monkeypatch.context() as patch:
        counted = count_predictions(patch)
        segment(config, tmp_path, World(), resume=True)
    assert len(counted) == 2
    assert SEGMENT_RESULTS.read(tmp_path).metrics[0].count == 6


def test_a_finished_run_is_tested_again_without_training(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_tensors(finished_run)
    config = SegmentConfig.from_yaml(finished_run / "config.yaml", ["testing.flip=true"])
    counted = count_predictions(monkeypatch)
    result = Segmentation.retest(config, finished_run, World())
    assert (len(counted), result.is_new) == (6, True)
    first = json.loads((finished_run / "evaluations/segment/results.json").read_text())
    second = json.loads((result.result_dir / "results.json").read_text())
    assert first["weights"] == second["weights"]
    assert first["testing"] != second["testing"]
    assert "with and without a flip" in result.protocol
    assert Segmentation.retest(config, finished_run, World()).is_new is False
    own = Segmentation.retest(SegmentConfig.from_yaml(finished_run / "config.yaml"), finished_run, World())
    assert (own.is_new, own.result_dir) == (False, finished_run / "evaluations/segment")
    assert len(counted) == 6
    again = Segmentation.retest(config, finished_run, World(), step=4, recompute=True)
    assert len(counted) == 12
    assert again.protocol.startswith(f"The segmenter of {finished_run}, step 4. ")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_tensors(finished_run).items())


def test_an_unfinished_run_is_not_tested(finished_run: Path, tmp_path: Path) -> None:
    config = SegmentConfig.from_yaml(finished_run / "config.yaml")
    with pytest.raises(UserError) as caught:
        Segmentation.retest(config, tmp_path, World())
    assert str(caught.value) == (
        f"{tmp_path}: is not finished. Resume it first: c2fmae eval segment {tmp_path} --resume"
    )


@pytest.mark.unchecked
def test_two_processes_with_micro_batches_equal_one(source: Path, data: Path, tmp_path: Path) -> None:
    """The learning rate is so small that weights stay: differences are those of losses and gradients."""
    config = make_quick_config(source, data, "training.lr=1e-30", "training.warmup_steps=0")
    one = run_steps(build_segmentation, config, World())
    two = run_steps_in_two_processes(build_segmentation, config.override(["training.micro_batch=2"]), tmp_path)
    for ours, theirs in zip(two["values"], one["values"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    for name, tensor in one["tensors"].items():
        torch.testing.assert_close(two["tensors"][name], tensor, rtol=1e-6, atol=1e-12)
    assert torch.equal(two["scores"].confusion, one["scores"].confusion)


def test_eight_scenes_are_overfitted(source: Path, tmp_path: Path) -> None:
    overrides = (
        "data.train={name: generated, options: {size: 32, length: 8, difficulty: plain, seed: 3}}",
        "data.test={name: generated, options: {size: 32, length: 7, difficulty: plain, seed: 3}}",
        "data.scale=[1, 1]",
        "data.max_class_share=1",
        "data.flip=0",
        "data.distort=false",
        "data.image_size=[32, 32]",
        "data.short_side=32",
        "data.cache=true",
        "head.options.rescales=[4, 1]",
        "head.options.channels=32",
        "norm=batch",
        "training.steps=150",
        "training.warmup_steps=10",
        "training.lr=1e-2",
        "training.clip=1",
        "watching.held_out_every=150",
    )
    segment(make_quick_config(source, tmp_path, *overrides), tmp_path / "run", World())
    metrics = {metric.label: metric.value for metric in SEGMENT_RESULTS.read(tmp_path / "run").metrics}
    assert metrics["pixel accuracy"] > 97


def test_a_frozen_backbone_does_not_change(source: Path, data: Path) -> None:
    config = make_quick_config(
        source,
        data,
        "head={name: linear, options: {}}",
        "depths=null",
        "normed=true",
        "train_blocks=0",
        "norm=batch",
    )
    experiment = build_segmentation(config, World())
    before = {name: tensor.clone() for name, tensor in experiment.segmenter.state_dict().items()}
    training = TrainingState.create(experiment.segmenter, config.training)
    with experiment.open_batches(0) as batches:
        for _ in TrainingLoop(experiment.task, config.training, experiment.plan).run(training, batches):
            pass
    after = experiment.segmenter.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)
    trained = {name for name, parameter in experiment.segmenter.named_parameters() if parameter.requires_grad}
    assert trained == {"head.norm.weight", "head.norm.bias", "head.classifier.weight", "head.classifier.bias"}
    assert {name.split("/")[1] for name in training.gather_tensors() if name.startswith("optimiser/")} == trained


def test_smaller_fractions_are_subsets_of_larger_ones(source: Path, data: Path) -> None:
    keys = {}
    for fraction in (0.25, 0.5, 1):
        settings = (f"data.fraction={fraction}", "training.batch_size=4")
        experiment = build_segmentation(make_quick_config(source, data, *settings), World())
        keys[fraction] = list(experiment.scenes.keys)
        assert ("with 25 % of the images" in experiment.protocol) == (fraction == 0.25)
    assert [len(names) for names in keys.values()] == [4, 8, 16]
    assert set(keys[0.25]) < set(keys[0.5]) < set(keys[1])
    other = build_segmentation(
        make_quick_config(source, data, "data.fraction=0.25", "training.batch_size=4", "training.seed=1"), World()
    )
    assert list(other.scenes.keys) != keys[0.25]


def change_info(data: Path, **changes: Any) -> None:
    for split in ("train", "test"):
        path = data / split / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def thin_maps(data: Path) -> None:
    """Keep the labels of every fourth pixel."""
    for path in data.glob("*/semantic/*.png"):
        Image.fromarray(np.asarray(Image.open(path))[2::4, 2::4]).save(path)
    change_info(data, label_stride=4)


def label_one_class(data: Path) -> None:
    for path in data.glob("*/semantic/*.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    change_info(data, classes=[{"name": "one"}])


def name_classes(*names: str) -> Callable[[Path], None]:
    return lambda data: change_info(data, classes=[{"name": name} for name in names])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            name_classes(),
            (),
            "train: {data}/train names no classes. List them in its dataset.json; `c2fmae data "
            "check` prints one to start from",
        ),
        (
            label_one_class,
            (),
            "train: {data}/train has one class, 'one', so that every prediction is right. Add a class for the other "
            "pixels to its maps and its dataset.json",
        ),
        (
            name_classes(*map(str, range(300))),
            (),
            "train: {data}/train/dataset.json: classes: expected at most 255, got 300: ids are bytes, and 255 is "
            '"not labelled". Merge classes',
        ),
        (
            thin_maps,
            (),
            "train: {data}/train has labels at every 4 pixels only (label_stride in its dataset.json), but the "
            "published results are for labels at every pixel. Use maps at full size, or accept this with --recipe "
            "small or data.allow_label_stride=true",
        ),
        (
            lambda data: None,
            ("norm=batch", "training.micro_batch=4"),
            "norm: batch norms would use the statistics of a part of the step's images, divided over 2 micro-batches, "
            "so that the result depends on the division. Set norm=group, or accept this with norm_is_local=true",
        ),
        (
            lambda data: None,
            ("norm=batch", "training.batch_size=1"),
            "norm: batch norms need at least 2 images, because the head pools a map to one cell of each image (got "
            "1). Set norm=group, or a larger training.batch_size",
        ),
        (
            lambda data: None,
            ("train_blocks=3",),
            "train_blocks: expected at most 2, the backbone's blocks, got 3",
        ),
        (lambda data: None, ("data.test=null",), "test: is required. Use --data with a folder of train and val sets"),
    ],
)
def test_invalid_data_and_settings_are_rejected_before_the_first_step(
    source: Path, tmp_path: Path, change: Callable[[Path], None], settings: tuple[str, ...], message: str
) -> None:
    data = write_halves(tmp_path, train=8, test=1)
    change(data)
    with pytest.raises(UserError) as caught:
        build_segmentation(make_quick_config(source, data, *settings), World())
    assert str(caught.value) == message.format(data=data)


def test_maps_at_a_stride_are_accepted_on_request_and_named_in_the_protocol(source: Path, tmp_path: Path) -> None:
    data = write_halves(tmp_path / "data", train=8, test=2)
    thin_maps(data)
    segment(make_quick_config(source, data, "data.allow_label_stride=true"), tmp_path / "run", World())
    result = SEGMENT_RESULTS.read(tmp_path / "run")
    assert "The truth is the label of one pixel in every 4 × 4." in result.protocol
    num_labelled = int({metric.key: metric for metric in result.metrics}["pixel_accuracy"].notes[0].split()[0])
    assert 40 <= num_labelled <= 48  # 4 × 6 in each image, without the border


def test_a_class_id_outside_the_space_is_named(source: Path, tmp_path: Path) -> None:
    data = write_halves(tmp_path / "data", train=8, test=2, classes=("one", "two"))
    with pytest.raises(UserError, match=r"train/semantic/0-000.png: id 2 on 160 pixels is outside the 2 classes"):
        segment(make_quick_config(source, data), tmp_path / "run", World())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("norm=layer", "norm: expected batch, as at the start of this run, got layer"),
        ("drop_path=0.3", "drop_path: expected 0.0, as at the start of this run, got 0.3"),
        ("data.image_size=[24, 24]", "data.image_size: expected (16, 16), as at the start of this run, got (24, 24)"),
    ],
)
def test_settings_of_the_segmenter_cannot_change_on_resume(
    finished_run: Path, source: Path, data: Path, setting: str, message: str
) -> None:
    config = make_quick_config(source, data, "training.ema=0.5", "norm=batch", setting)
    with pytest.raises(UserError) as caught:
        segment(config, finished_run, World(), resume=True, accept_changes=True)
    assert str(caught.value) == f"{message}. Choose another --out"
