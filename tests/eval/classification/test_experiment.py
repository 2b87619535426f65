"""Fine-tuning runs: training, results, resuming and error messages."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import spawn  # type: ignore[attr-defined]

from c2fmae.config.data import DatasetConfig
from c2fmae.config.unseen_scenes import UnseenScenes
from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import TrainingState
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.classification.config import ClassificationDataConfig, FinetuneConfig
from c2fmae.eval.classification.experiment import Finetuning, build_finetuning, finetune
from c2fmae.eval.classification.result import read_finetune_result
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.training_evaluation import fill_generated_sets
from c2fmae.methods.initial_weights import load_initial_weights
from c2fmae.models.backbones import load_backbone
from c2fmae.models.classifiers import load_classifier
from tests.eval.classification import finetune_processes
from tests.eval.classification.tiny_finetuning import (
    RGB_SEMANTIC_SPEC,
    make_quick_config,
    write_pretrained_checkpoint,
    write_train_test_sets,
)
from tests.methods.tiny_methods import build_tiny_method

pytestmark = [pytest.mark.numeric, pytest.mark.unchecked]

PLAIN = ("mixing.mixup=0", "mixing.cutmix=0", "data.rand_augment=null", "data.erasing=0", "data.scale=[1, 1]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_train_test_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def with_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained_checkpoint(tmp_path_factory.mktemp("with-maps"), RGB_SEMANTIC_SPEC)


def load_tensors(run_dir: Path, step: int = 6) -> dict[str, Tensor]:
    return dict(load_checkpoint(run_dir / "checkpoints" / f"step-{step:08d}").tensors)


def assert_same_run(run_dir: Path, expected: Path) -> None:
    """Assert that two runs have bitwise equal tensors, and the same metrics and best checkpoint."""
    ours, theirs = load_tensors(run_dir), load_tensors(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    for name in ("metrics.jsonl", "evaluations/finetune/classes.csv"):
        assert (run_dir / name).read_bytes() == (expected / name).read_bytes()
    assert [path.name for path in list_checkpoints(run_dir / "best")] == [
        path.name for path in list_checkpoints(expected / "best")
    ]


def test_a_run_overfits_a_small_set_and_can_be_loaded_as_a_classifier(source: Path, data: Path, tmp_path: Path) -> None:
    config = make_quick_config(
        source, data, *PLAIN, "training.steps=40", "training.lr=5e-3", "watching.held_out_every=20"
    )
    outcome = finetune(config, tmp_path / "run", World())
    assert (outcome.status, outcome.step, outcome.exit_code) == ("finished", 40, 0)
    result = {metric.label: metric for metric in read_finetune_result(tmp_path / "run").metrics}
    assert result["top-1"].value == 100
    assert result["top-1"].count == 18
    assert result["top-1"].notes == ("4 patch tokens per image",)
    classifier, backbone = load_classifier(tmp_path / "run"), load_backbone(tmp_path / "run")
    assert [label.name if label else "" for label in classifier.spec.labels] == ["class-0", "class-1", "class-2"]
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(classifier.backbone.pooled(images), backbone.pooled(images))
    experiment = build_finetuning(config, World())
    experiment.classifier.load_state_dict(
        load_checkpoint(tmp_path / "run/checkpoints/step-00000040").tensors_of("model")
    )
    assert torch.equal(experiment.classifier.eval()(images), classifier(images))
    best = load_classifier(tmp_path / "run" / "best")
    assert best.num_labels == 3


def test_metrics_best_checkpoint_and_result_files_are_written(source: Path, data: Path, tmp_path: Path) -> None:
    finetune(make_quick_config(source, data, "training.ema=0.5"), tmp_path, World())
    rows = read_rows(RunDir(tmp_path).metrics)
    evaluated = [row for row in rows if "test/top-1" in row]
    assert [row["step"] for row in evaluated] == [2, 4, 6]
    assert all({"test/top-5", "test/loss", "average/top-1"} <= row.keys() for row in evaluated)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    metrics = {metric.label: metric for metric in read_finetune_result(tmp_path).metrics}
    assert metrics["top-1"].value == evaluated[-1]["test/top-1"]
    assert metrics["top-1, averaged weights"].value == evaluated[-1]["average/top-1"]
    best = max(max(row["test/top-1"], row["average/top-1"]) for row in evaluated)
    assert metrics["best top-1"].value == pytest.approx(best)
    first = next(row["step"] for row in evaluated if max(row["test/top-1"], row["average/top-1"]) == best)
    assert [path.name for path in list_checkpoints(tmp_path / "best")] == [f"step-{first:08d}"]
    saved = load_checkpoint(list_checkpoints(tmp_path / "best")[0])
    assert {name.split("/")[0] for name in saved.tensors} == {"model"}
    row = next(row for row in evaluated if row["step"] == first)
    assert saved.metadata["averaged"] == (row["average/top-1"] > row["test/top-1"])
    experiment = build_finetuning(make_quick_config(source, data), World())
    experiment.classifier.load_state_dict(saved.tensors_of("model"))
    assert 100 * experiment.evaluator.evaluate(experiment.classifier, ("rgb",)).top1 == pytest.approx(best)
    with (tmp_path / "evaluations/finetune/classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [(row["label"], row["name"], row["images"]) for row in classes] == [
        (str(i), f"class-{i}", "6") for i in range(3)
    ]
    assert sum(int(row["right"]) for row in classes) == round(metrics["top-1"].value * 18 / 100)
    page = (tmp_path / "report.html").read_text()
    captions = ("Classes with the lowest accuracy", "Classes with the highest accuracy")
    assert [caption in page for caption in captions] == [True, True]
    section = page.split(captions[0])[1].split("<details>")[0]
    assert [section.count(f'<th scope="row">class-{i}</th>') for i in range(3)] == [1, 1, 1]
    assert "the last weights are the result" in page
    assert "Loading of a sample, ms" in page
    protocol = json.loads((tmp_path / "evaluations/finetune/results.json").read_text())["protocol"]
    assert "Mixup 0.8, CutMix 1, smoothing 0.1" in protocol
    assert "Inputs: rgb." in protocol
    assert "Warning" not in protocol


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make runs fail after the evaluation of a step."""
    evaluate = Finetuning.evaluate

    def fail(self: Finetuning, training: TrainingState, *args: Any, **options: Any) -> None:
        evaluate(self, training, *args, **options)
        if training.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Finetuning, "evaluate", fail)


@pytest.mark.parametrize("step", [1, 2, 4, 6])
def test_a_run_interrupted_at_any_step_resumes_bitwise(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = make_quick_config(source, data, "training.ema=0.5", "drop_path=0.2", "saving.steps=2")
    finetune(config, tmp_path / "uninterrupted", World())
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, tmp_path / "interrupted", World())
    with pytest.raises(UserError, match="contains a run. Use --resume"):
        finetune(config, tmp_path / "interrupted", World())
    assert finetune(config, tmp_path / "interrupted", World(), resume=True).status == "finished"
    assert_same_run(tmp_path / "interrupted", tmp_path / "uninterrupted")
    assert finetune(config, tmp_path / "interrupted", World(), resume=True).status == "finished"


def test_runs_resume_without_their_source(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_pretrained_checkpoint(tmp_path / "own")
    config = make_quick_config(own, data, "saving.steps=2")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, tmp_path / "run", World())
    own.rename(tmp_path / "moved")
    assert finetune(config, tmp_path / "run", World(), resume=True).status == "finished"


@pytest.mark.unchecked
def test_two_processes_train_like_one(with_maps: Path, data: Path, tmp_path: Path) -> None:
    overrides = ("data.granularities=[semantic, rgb]", "granularity_dropout=0.4", "data.test_with=[[rgb]]")
    config = make_quick_config(with_maps, data, *overrides, "saving.keep_every=1")
    finetune(config, tmp_path / "one", World())
    spawn(finetune_processes.run_rank, args=(config.model_dump_json(), tmp_path), nprocs=2)
    one, two = (load_tensors(tmp_path / name, step=1) for name in ("one", "two"))
    for name, tensor in one.items():
        if name.endswith("/exp_avg"):  # a tenth of the gradient, since AdamW amplifies rounding errors
            torch.testing.assert_close(10 * two[name], 10 * tensor, rtol=1e-5, atol=1e-5, msg=name)
    rows = [read_rows(RunDir(tmp_path / name).metrics) for name in ("one", "two")]
    for ours, theirs in zip(*rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_from_scratch_initialises_the_same_architecture(source: Path, data: Path) -> None:
    loaded, initialised = (
        build_finetuning(make_quick_config(source, data, f"from_scratch={flag}"), World()).classifier
        for flag in ("false", "true")
    )
    assert loaded.spec == initialised.spec
    name = "backbone.encoder.blocks.0.attn.qkv.weight"
    assert torch.equal(loaded.state_dict()[name], load_backbone(source).state_dict()[name.removeprefix("backbone.")])
    assert not torch.equal(initialised.state_dict()[name], loaded.state_dict()[name])
    again = build_finetuning(make_quick_config(source, data, "from_scratch=true"), World()).classifier
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in initialised.state_dict().items())


@pytest.mark.parametrize("blocks", [0, 2])
def test_frozen_blocks_do_not_change(source: Path, data: Path, tmp_path: Path, blocks: int) -> None:
    config = make_quick_config(source, data, f"train_blocks={blocks}")
    before = build_finetuning(config, World()).classifier.state_dict()
    finetune(config, tmp_path, World())
    after = load_tensors(tmp_path)
    trained = ("head.", "backbone.fc_norm.", *(f"backbone.encoder.blocks.{index}." for index in range(3 - blocks, 3)))
    for name, tensor in before.items():
        assert torch.equal(after[f"model/{name}"], tensor) == (not name.startswith(trained)), name
    assert {name.split("/")[1] for name in after if name.startswith("optimiser/")} == {
        name for name in before if name.startswith(trained)
    }


def test_a_fraction_of_the_labels_is_drawn_from_each_class(source: Path, data: Path) -> None:
    experiment = build_finetuning(
        make_quick_config(source, data, "data.fraction=0.3", "training.batch_size=4"), World()
    )
    assert len(experiment.scenes) == 9  # 8 × 0.3 = 2.4 of each class, rounded up
    assert sorted(experiment.scenes[row].label or 0 for row in range(9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "with 30 % of each class's labels" in experiment.protocol


def test_classifiers_with_maps_are_tested_with_each_choice_of_inputs(
    with_maps: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    overrides = ("data.granularities=[semantic, rgb]", "data.test_with=[[rgb], [semantic], [semantic, rgb]]")
    finetune(make_quick_config(with_maps, data, *overrides), tmp_path, World())
    metrics = {metric.label: metric for metric in read_finetune_result(tmp_path).metrics}
    tokens = {name: metrics[name].notes[0].split()[0] for name in metrics if name.startswith("top-1")}
    assert tokens == {
        "top-1": "8",
        "top-1, input rgb": "4",
        "top-1, input semantic": "4",
        "top-1, input semantic, rgb": "8",
    }
    assert metrics["top-1"].value == metrics["top-1, input semantic, rgb"].value
    assert metrics["loss, input rgb"].value != metrics["loss, input semantic"].value
    unknown = (
        "Warning: the data does not state whether its maps were made with knowledge of the labels (maps_know_labels in "
        "dataset.json); if so, they may reveal them."
    )
    assert read_finetune_result(tmp_path).protocol.endswith(unknown)
    assert unknown in caplog.messages


@pytest.mark.parametrize(
    ("maps_know_labels", "text"),
    [
        (
            True,
            "Warning: the maps were made with knowledge of the labels, so they may reveal them.",
        ),
        (False, "with Wilson's 95 % interval; the last weights are the result."),
    ],
)
def test_the_protocol_warns_of_maps_made_with_labels(
    with_maps: Path, data: Path, maps_know_labels: bool, text: str, tmp_path: Path
) -> None:
    write_train_test_sets(tmp_path)
    for split in ("train", "test"):
        path = tmp_path / split / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "maps_know_labels": maps_know_labels}))
    experiment = build_finetuning(make_quick_config(with_maps, tmp_path, "data.granularities=[semantic, rgb]"), World())
    assert text in experiment.protocol
    assert ("Warning" in experiment.protocol) == maps_know_labels


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.granularities=[semantic, rgb]"],
            "data.granularities: no granularity of {source} named 'semantic'. Known: rgb",
        ),
        (["train_blocks=4"], "train_blocks: expected at most 3, the backbone's blocks, got 4"),
        (["data.test=null"], "test: is required. Use --data with a folder of train and val sets"),
    ],
)
def test_invalid_settings_are_rejected_before_training(
    source: Path, data: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_finetuning(make_quick_config(source, data, *overrides), World())
    assert str(caught.value) == message.format(source=source)


def test_maps_with_other_classes_are_rejected(with_maps: Path, tmp_path: Path) -> None:
    write_train_test_sets(tmp_path)
    info = json.loads((tmp_path / "test/dataset.json").read_text())
    for split in ("train", "test"):
        classes = [{"name": name} for name in ("one", "two", "four")]
        (tmp_path / split / "dataset.json").write_text(json.dumps({**info, "classes": classes}))
    with pytest.raises(UserError) as caught:
        build_finetuning(make_quick_config(with_maps, tmp_path, "data.granularities=[semantic, rgb]"), World())
    assert str(caught.value) == (
        f"train: the 3 classes of the maps of {tmp_path / 'train'} are not the 3 that {with_maps} was trained on. "
        "Convert the maps to these classes"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.test_with=[[rgb], [depth]]"],
            "a: data.test_with: depth is not trained on. Add it to data.granularities",
        ),
        (
            ["granularity_dropout=0.5"],
            "a: granularity_dropout: there is one granularity. Set it to 0, or add to data.granularities",
        ),
        (
            ["training.sharded=true", "training.ema=0.9"],
            "a: training.sharded: sharded averages cannot be evaluated. Set training.ema to null",
        ),
    ],
)
def test_contradicting_settings_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        FinetuneConfig.from_dict({"init": "b"}, overrides, source="a")
    assert str(caught.value) == message


def test_the_initial_head_depends_on_the_seed(source: Path, data: Path) -> None:
    one, other, again = (
        build_finetuning(make_quick_config(source, data, f"training.seed={seed}"), World()).classifier.head.weight
        for seed in (0, 1, 0)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_pretraining_can_start_from_a_finetuned_vit(data: Path, with_maps: Path, tmp_path: Path) -> None:
    finetune(make_quick_config(with_maps, data, "pool=cls"), tmp_path, World())
    method = build_tiny_method("mae", "image_size=[16, 16]", "encoder.patch_size=8", "encoder.depth=3")
    initial = load_initial_weights(method, str(tmp_path))
    name = "encoder.blocks.2.mlp.fc1.weight"
    assert torch.equal(method.model.state_dict()[name], load_tensors(tmp_path)[f"model/backbone.{name}"])
    assert name in initial.loaded


def test_runs_do_not_resume_with_other_labels(source: Path, tmp_path: Path) -> None:
    data = write_train_test_sets(tmp_path / "data")
    config = make_quick_config(source, data)
    finetune(config, tmp_path / "run", World())
    for split in ("train", "test"):
        (data / split / "rgb" / "class-1").rename(data / split / "rgb" / "class-9")
        (data / split / "semantic" / "class-1").rename(data / split / "semantic" / "class-9")
    with pytest.raises(UserError) as caught:
        finetune(config, tmp_path / "run", World(), resume=True)
    assert str(caught.value) == (
        f"train: {data / 'train'} has other labels than this run was trained on. Resume with the original data"
    )


def test_runs_do_not_resume_with_another_source(source: Path, data: Path, tmp_path: Path) -> None:
    finetune(make_quick_config(source, data), tmp_path / "run", World())
    other = write_pretrained_checkpoint(tmp_path / "other")
    with pytest.raises(UserError, match=r"the config differs from that of the run.*\n  init: "):
        finetune(make_quick_config(other, data), tmp_path / "run", World(), resume=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pool=cls", "pool: expected mean, as at the start of this run, got cls"),
        ("drop_path=0.3", "drop_path: expected 0.0, as at the start of this run, got 0.3"),
        ("data.crop=0.5", "data.crop: expected 1.0, as at the start of this run, got 0.5"),
        (
            "data.granularities=[semantic, rgb]",
            "data.granularities: expected rgb, as at the start of this run, got rgb, semantic",
        ),
        ("data.image_size=[32, 32]", "data.image_size: expected (16, 16), as at the start of this run, got (32, 32)"),
    ],
)
def test_settings_of_the_classifier_cannot_change_on_resume(
    source: Path, data: Path, tmp_path: Path, setting: str, message: str
) -> None:
    finetune(make_quick_config(source, data), tmp_path, World())
    with pytest.raises(UserError) as caught:
        finetune(make_quick_config(source, data, setting), tmp_path, World(), resume=True, accept_changes=True)
    assert str(caught.value) == f"{message}. Choose another --out"


@pytest.mark.parametrize("fraction", [1, 0.5])
def test_an_image_without_a_label_is_named_before_training(source: Path, tmp_path: Path, fraction: float) -> None:
    write_train_test_sets(tmp_path)
    image = next((tmp_path / "train/rgb/class-0").iterdir())
    for name in ("rgb", "semantic"):
        (tmp_path / "train" / name / "class-0" / image.name).rename(tmp_path / "train" / name / image.name)
    with pytest.raises(UserError) as caught:
        build_finetuning(make_quick_config(source, tmp_path, f"data.fraction={fraction}"), World())
    assert str(caught.value) == (
        f"train: 1 of 24 images have no class label (first: {image.stem}). Label them, or leave them out"
    )


def test_data_without_labels_is_rejected_with_an_evaluation_of_maps(source: Path, tmp_path: Path) -> None:
    write_train_test_sets(tmp_path)
    images = sorted((tmp_path / "train/rgb").glob("class-*/*"))
    for image in images:
        for name in ("rgb", "semantic"):
            (tmp_path / "train" / name / image.parent.name / image.name).rename(tmp_path / "train" / name / image.name)
    first = min(image.stem for image in images)
    with pytest.raises(UserError) as caught:
        build_finetuning(make_quick_config(source, tmp_path), World())
    assert str(caught.value) == (
        f"train: the data has no class labels (first: {first}), which fine-tuning needs. Use class folders or labelled "
        "shards; for maps use: c2fmae eval dense"
    )


def test_settings_are_applied(source: Path, data: Path) -> None:
    overrides = (
        "drop_path=0.4",
        "data.crop=0.5",
        "data.image_size=[32, 24]",
        "data.repeats=2",
        "data.scale=[0.3, 0.4]",
    )
    experiment = build_finetuning(
        make_quick_config(source, data, *overrides, "training.precision=bf16", "data.erasing=0.7"), World()
    )
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in experiment.classifier.backbone.encoder.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    assert experiment.classifier.spec.crop == 0.5
    assert (experiment.evaluator.view.crop, experiment.evaluator.view.size) == (0.5, (32, 24))
    assert experiment.evaluator.precision == torch.bfloat16
    assert experiment.task.num_views == 2
    with experiment.open_batches(0) as batches:
        batch = next(batches)
        view: Any = batches._loader.transform
    assert batch.maps["rgb"].shape == (8, 3, 32, 24)
    assert batch.keys[0] == batch.keys[1]
    assert (view.erase_prob, view.view.scale, view.mean, view.std) == (
        0.7,
        (0.3, 0.4),
        RGB_SEMANTIC_SPEC.mean,
        RGB_SEMANTIC_SPEC.std,
    )


@pytest.mark.unchecked
def test_sharded_training_gives_the_same_metrics(source: Path, data: Path, tmp_path: Path) -> None:
    config = make_quick_config(source, data, "training.sharded=true")
    spawn(finetune_processes.run_rank, args=(config.model_dump_json(), tmp_path), nprocs=2)
    finetune(make_quick_config(source, data), tmp_path / "one", World())
    replicated, sharded = (read_finetune_result(tmp_path / name).metrics for name in ("one", "two"))
    assert [metric.label for metric in sharded] == [metric.label for metric in replicated]
    assert [metric.value for metric in sharded] == pytest.approx([metric.value for metric in replicated], rel=1e-3)
    assert load_classifier(tmp_path / "two").num_labels == 3


def test_sets_with_different_labels_are_rejected(source: Path, tmp_path: Path) -> None:
    write_train_test_sets(tmp_path)
    for name in ("rgb", "semantic"):
        (tmp_path / "test" / name / "class-2").rename(tmp_path / "test" / name / "class-3")
    with pytest.raises(UserError, match=r"other labels than .* differ in 'class-3'"):
        build_finetuning(make_quick_config(source, tmp_path), World())


def test_generated_training_and_test_sets_have_separate_options(source: Path) -> None:
    overrides = ["data.train=generated", "data.test=generated", "data.train.options={size: 32, length: 8}"]
    overrides += ["data.test.options={size: 32, length: 5}"]
    experiment = build_finetuning(make_quick_config(source, Path(), *overrides), World())
    assert (len(experiment.scenes), len(experiment.evaluator.scenes)) == (8, 5)
    assert not torch.equal(experiment.scenes[0].maps["rgb"], experiment.evaluator.scenes[0].maps["rgb"])
    assert "Warning" not in experiment.protocol


def test_resumed_runs_report_their_initial_weights(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_quick_config(source, data, "saving.steps=2")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, tmp_path, World())
    (tmp_path / "checkpoints/step-00000004/checkpoint.json").write_text("{")  # so the previous checkpoint is used
    finetune(config, tmp_path, World(), resume=True)
    report = json.loads((tmp_path / "evaluations/finetune/results.json").read_text())["load_report"]
    assert report == str(load_backbone(source).load_report)
    last = read_rows(RunDir(tmp_path).metrics)[-1]["test/top-1"]
    assert f"step 6: top-1 {last:.2f} % on 18 test images" in capsys.readouterr().err


def test_runs_without_an_intact_checkpoint_do_not_resume(source: Path, data: Path, tmp_path: Path) -> None:
    config = make_quick_config(source, data)
    finetune(config, tmp_path, World())
    for path in (tmp_path / "checkpoints").glob("*/checkpoint.json"):
        path.write_text("{")
    with pytest.raises(UserError) as caught:
        finetune(config, tmp_path, World(), resume=True)
    expected = f"{tmp_path / 'checkpoints'}: no checkpoint is intact. Restore one, or start again in another --out"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("unseen", "given"),
    [
        (UnseenScenes({"difficulty": "plain"}), {"difficulty": "plain"}),  # runs of version 0.1 resume: no default
        (UnseenScenes({}, seed=4000), {"length": 2048, "seed": 4001}),
    ],
)
def test_the_config_describes_generated_scenes_that_differ_from_the_default(
    unseen: UnseenScenes, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ClassificationDataConfig(train="generated", test="images")
    monkeypatch.setattr(ModelUnderTest, "find_unseen_scenes", lambda *_: unseen)
    filled = fill_generated_sets(data, object.__new__(ModelUnderTest))
    assert isinstance(filled.train, DatasetConfig)
    assert filled.train.given_options() == given
    assert filled.test == "images"
