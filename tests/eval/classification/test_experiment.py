"""Fine-tunings from their start to their end: what they learn, keep, resume and write down."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import spawn  # type: ignore[attr-defined]

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.experiment import Finetuning, build_finetuning, finetune
from c2fmae.eval.classification.result import read_finetune_result
from c2fmae.methods.masked.initial_weights import load_initial_weights
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

pytestmark = pytest.mark.numeric

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


def tensors_of(path: Path, step: int = 6) -> dict[str, Tensor]:
    return dict(load_checkpoint(path / "checkpoints" / f"step-{step:08d}").tensors)


def assert_same_run(found: Path, expected: Path) -> None:
    """The same bits, and the same words about them."""
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    for name in ("metrics.jsonl", "evaluations/finetune/classes.csv"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    assert [path.name for path in list_checkpoints(found / "best")] == [
        p.name for p in list_checkpoints(expected / "best")
    ]


def test_it_learns_a_few_photos_by_heart_and_is_a_classifier_that_others_load(
    source: Path, data: Path, tmp_path: Path
) -> None:
    config = make_quick_config(
        source, data, *PLAIN, "training.steps=40", "training.lr=5e-3", "watching.held_out_every=20"
    )
    outcome = finetune(config, tmp_path / "run", World())
    assert (outcome.status, outcome.step, outcome.exit_code) == ("finished", 40, 0)
    result = {metric.label: metric for metric in read_finetune_result(tmp_path / "run").metrics}
    assert result["top-1"].value == 100
    assert result["top-1"].count == 18
    assert result["top-1"].notes == ("4 tokens of patches an image",)
    classifier, backbone = load_classifier(tmp_path / "run"), load_backbone(tmp_path / "run")
    assert [label.name if label else "" for label in classifier.spec.labels] == ["class-0", "class-1", "class-2"]
    photos = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(classifier.backbone.pooled(photos), backbone.pooled(photos))
    it = build_finetuning(config, World())
    it.classifier.load_state_dict(load_checkpoint(tmp_path / "run/checkpoints/step-00000040").tensors_of("model"))
    assert torch.equal(it.classifier.eval()(photos), classifier(photos))
    best = load_classifier(tmp_path / "run" / "best")
    assert best.num_labels == 3


def test_what_is_written_down_of_it(source: Path, data: Path, tmp_path: Path) -> None:
    finetune(make_quick_config(source, data, "training.ema=0.5"), tmp_path, World())
    rows = read_rows(RunDir(tmp_path).metrics)
    tried = [row for row in rows if "test/top-1" in row]
    assert [row["step"] for row in tried] == [2, 4, 6]
    assert all({"test/top-5", "test/loss", "average/top-1"} <= row.keys() for row in tried)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    metrics = {metric.label: metric for metric in read_finetune_result(tmp_path).metrics}
    assert metrics["top-1"].value == tried[-1]["test/top-1"]
    assert metrics["top-1, averaged weights"].value == tried[-1]["average/top-1"]
    best = max(max(row["test/top-1"], row["average/top-1"]) for row in tried)
    assert metrics["best top-1"].value == pytest.approx(best)
    first = next(row["step"] for row in tried if max(row["test/top-1"], row["average/top-1"]) == best)
    assert [path.name for path in list_checkpoints(tmp_path / "best")] == [f"step-{first:08d}"]
    kept = load_checkpoint(list_checkpoints(tmp_path / "best")[0])
    assert {name.split("/")[0] for name in kept.tensors} == {"model"}
    row = next(row for row in tried if row["step"] == first)
    assert kept.metadata["averaged"] == (row["average/top-1"] > row["test/top-1"])
    it = build_finetuning(make_quick_config(source, data), World())
    it.classifier.load_state_dict(kept.tensors_of("model"))
    assert 100 * it.evaluator.evaluate(it.classifier, ("rgb",)).top1 == pytest.approx(best)
    with (tmp_path / "evaluations/finetune/classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [(row["label"], row["name"], row["images"]) for row in classes] == [
        (str(i), f"class-{i}", "6") for i in range(3)
    ]
    assert sum(int(row["right"]) for row in classes) == round(metrics["top-1"].value * 18 / 100)
    page = (tmp_path / "report.html").read_text()
    assert "Class by class" in page
    assert "the last weights are the result" in page
    protocol = json.loads((tmp_path / "evaluations/finetune/results.json").read_text())["protocol"]
    assert "Mixup 0.8, CutMix 1, smoothing 0.1" in protocol
    assert "Inputs: rgb." in protocol
    assert "Warning" not in protocol


def interrupt(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool], where: str) -> None:
    """Let a run end as if it was killed: in a step, or in a look."""
    do = getattr(Finetuning, where)

    def fail(self: Finetuning, *given: object, **named: object) -> object:
        result = do(self, *given, **named)
        if where == "evaluate" and when(given[0].step):  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Finetuning, where, fail)


@pytest.mark.parametrize("killed_at", [1, 2, 4, 6])
def test_killed_after_any_step_and_resumed_it_ends_in_the_same_bits(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    config = make_quick_config(source, data, "training.ema=0.5", "drop_path=0.2", "saving.steps=2")
    finetune(config, tmp_path / "whole", World())
    with monkeypatch.context() as patch:
        interrupt(patch, lambda step: step == killed_at, "evaluate")
        with pytest.raises(KeyboardInterrupt):
            finetune(config, tmp_path / "killed", World())
    with pytest.raises(UserError, match="contains a run. Use --resume"):
        finetune(config, tmp_path / "killed", World())
    assert finetune(config, tmp_path / "killed", World(), resume=True).status == "finished"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert finetune(config, tmp_path / "killed", World(), resume=True).status == "finished"


def test_a_run_goes_on_without_its_source(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_pretrained_checkpoint(tmp_path / "own")
    config = make_quick_config(own, data, "saving.steps=2")
    with monkeypatch.context() as patch:
        interrupt(patch, lambda step: step == 3, "evaluate")
        with pytest.raises(KeyboardInterrupt):
            finetune(config, tmp_path / "run", World())
    own.rename(tmp_path / "gone")
    assert finetune(config, tmp_path / "run", World(), resume=True).status == "finished"


@pytest.mark.once
def test_two_processes_learn_what_one_does(with_maps: Path, data: Path, tmp_path: Path) -> None:
    words = ("data.granularities=[semantic, rgb]", "granularity_dropout=0.4", "data.test_with=[[rgb]]")
    config = make_quick_config(with_maps, data, *words, "saving.keep_every=1")
    finetune(config, tmp_path / "one", World())
    spawn(finetune_processes.run_rank, args=(config.model_dump_json(), tmp_path), nprocs=2)
    one, two = (tensors_of(tmp_path / part, step=1) for part in ("one", "two"))
    for name, tensor in one.items():
        if name.endswith("/exp_avg"):  # a tenth of the gradient, before AdamW makes steps of what was rounded
            torch.testing.assert_close(10 * two[name], 10 * tensor, rtol=1e-5, atol=1e-5, msg=name)
    rows = [read_rows(RunDir(tmp_path / part).metrics) for part in ("one", "two")]
    for ours, theirs in zip(*rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_from_scratch_is_another_start_of_the_same_vit(source: Path, data: Path) -> None:
    its, own = (
        build_finetuning(make_quick_config(source, data, f"from_scratch={each}"), World()).classifier
        for each in ("false", "true")
    )
    assert its.spec == own.spec
    name = "backbone.encoder.blocks.0.attn.qkv.weight"
    assert torch.equal(its.state_dict()[name], load_backbone(source).state_dict()[name.removeprefix("backbone.")])
    assert not torch.equal(own.state_dict()[name], its.state_dict()[name])
    again = build_finetuning(make_quick_config(source, data, "from_scratch=true"), World()).classifier
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in own.state_dict().items())


@pytest.mark.parametrize("blocks", [0, 2])
def test_what_is_not_trained_stays_as_it_was_to_the_bit(source: Path, data: Path, tmp_path: Path, blocks: int) -> None:
    config = make_quick_config(source, data, f"train_blocks={blocks}")
    before = build_finetuning(config, World()).classifier.state_dict()
    finetune(config, tmp_path, World())
    after = tensors_of(tmp_path)
    trained = ("head.", "backbone.fc_norm.", *(f"backbone.encoder.blocks.{index}." for index in range(3 - blocks, 3)))
    for name, tensor in before.items():
        assert torch.equal(after[f"model/{name}"], tensor) == (not name.startswith(trained)), name
    assert {name.split("/")[1] for name in after if name.startswith("optimiser/")} == {
        name for name in before if name.startswith(trained)
    }


def test_a_share_of_the_labels_is_of_each_class(source: Path, data: Path) -> None:
    it = build_finetuning(make_quick_config(source, data, "data.fraction=0.3", "training.batch_size=4"), World())
    assert len(it.scenes) == 9  # of 8 a class, 2.4 rounded up
    assert sorted(it.scenes[row].label or 0 for row in range(9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "with 30 % of each class's labels" in it.protocol


def test_with_maps_it_sees_the_tokens_that_it_is_asked_to_see(
    with_maps: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    words = ("data.granularities=[semantic, rgb]", "data.test_with=[[rgb], [semantic], [semantic, rgb]]")
    finetune(make_quick_config(with_maps, data, *words), tmp_path, World())
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
    ("knows", "said"),
    [
        (
            True,
            "Warning: the maps were made with knowledge of the labels, so they may reveal them.",
        ),
        (False, "with Wilson's 95 % interval; the last weights are the result."),
    ],
)
def test_maps_that_know_the_answer_are_told(
    with_maps: Path, data: Path, knows: bool, said: str, tmp_path: Path
) -> None:
    write_train_test_sets(tmp_path)
    for part in ("train", "test"):
        path = tmp_path / part / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "maps_know_labels": knows}))
    it = build_finetuning(make_quick_config(with_maps, tmp_path, "data.granularities=[semantic, rgb]"), World())
    assert said in it.protocol
    assert ("Warning" in it.protocol) == knows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.granularities=[semantic, rgb]"],
            "data.granularities: no granularity of {source} named 'semantic'. Known: rgb",
        ),
        (["train_blocks=4"], "train_blocks: the backbone has 3 blocks, got 4"),
        (["data.test=null"], "test: no data is given. Give --data, a folder of train and val sets"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    source: Path, data: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_finetuning(make_quick_config(source, data, *words), World())
    assert str(caught.value) == message.format(source=source)


def test_maps_of_other_classes_are_refused(with_maps: Path, tmp_path: Path) -> None:
    write_train_test_sets(tmp_path)
    info = json.loads((tmp_path / "test/dataset.json").read_text())
    for part in ("train", "test"):
        classes = [{"name": name} for name in ("one", "two", "four")]
        (tmp_path / part / "dataset.json").write_text(json.dumps({**info, "classes": classes}))
    with pytest.raises(UserError) as caught:
        build_finetuning(make_quick_config(with_maps, tmp_path, "data.granularities=[semantic, rgb]"), World())
    assert str(caught.value) == (
        f"train: the maps of {tmp_path / 'train'} have 3 classes, and they are not the 3 that {with_maps} has learned. "
        "Bring the maps to these"
    )


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_settings_that_do_not_go_together_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        FinetuneConfig.from_dict({"init": "b"}, words, source="a")
    assert str(caught.value) == message


def test_the_noise_of_the_head_is_the_seeds(source: Path, data: Path) -> None:
    one, other, again = (
        build_finetuning(make_quick_config(source, data, f"training.seed={seed}"), World()).classifier.head.weight
        for seed in (0, 1, 0)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_pre_training_may_begin_with_a_fine_tuned_vit(data: Path, with_maps: Path, tmp_path: Path) -> None:
    finetune(make_quick_config(with_maps, data, "pool=cls"), tmp_path, World())
    method = build_tiny_method("mae", "image_size=[16, 16]", "encoder.patch_size=8", "encoder.depth=3")
    initial = load_initial_weights(method, str(tmp_path))
    name = "encoder.blocks.2.mlp.fc1.weight"
    assert torch.equal(method.model.state_dict()[name], tensors_of(tmp_path)[f"model/backbone.{name}"])
    assert name in initial.loaded


def test_a_run_does_not_go_on_with_other_labels(source: Path, tmp_path: Path) -> None:
    data = write_train_test_sets(tmp_path / "data")
    config = make_quick_config(source, data)
    finetune(config, tmp_path / "run", World())
    for part in ("train", "test"):
        (data / part / "rgb" / "class-1").rename(data / part / "rgb" / "class-9")
        (data / part / "semantic" / "class-1").rename(data / part / "semantic" / "class-9")
    with pytest.raises(UserError) as caught:
        finetune(config, tmp_path / "run", World(), resume=True)
    assert str(caught.value) == (
        f"train: {data / 'train'} has other labels than this run learned. Resume with the data of before"
    )


def test_a_run_does_not_go_on_from_another_source(source: Path, data: Path, tmp_path: Path) -> None:
    finetune(make_quick_config(source, data), tmp_path / "run", World())
    other = write_pretrained_checkpoint(tmp_path / "other")
    with pytest.raises(UserError, match=r"the config differs from that of the run.*\n  init: "):
        finetune(make_quick_config(other, data), tmp_path / "run", World(), resume=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pool=cls", "pool: this run has begun with mean, not cls"),
        ("drop_path=0.3", "drop_path: this run has begun with 0.0, not 0.3"),
        ("data.crop=0.5", "data.crop: this run has begun with 1.0, not 0.5"),
        ("data.granularities=[semantic, rgb]", "data.granularities: this run has begun with rgb, not rgb, semantic"),
        ("data.image_size=[32, 32]", "data.image_size: this run has begun with (16, 16), not (32, 32)"),
    ],
)
def test_what_a_classifier_has_begun_with_stays(
    source: Path, data: Path, tmp_path: Path, setting: str, message: str
) -> None:
    finetune(make_quick_config(source, data), tmp_path, World())
    with pytest.raises(UserError) as caught:
        finetune(make_quick_config(source, data, setting), tmp_path, World(), resume=True, accept_changes=True)
    assert str(caught.value) == f"{message}. Such a change needs another --out"


@pytest.mark.parametrize("fraction", [1, 0.5])
def test_a_photo_without_a_label_is_named_before_anything_is_trained(
    source: Path, tmp_path: Path, fraction: float
) -> None:
    write_train_test_sets(tmp_path)
    photo = next((tmp_path / "train/rgb/class-0").iterdir())
    for name in ("rgb", "semantic"):
        (tmp_path / "train" / name / "class-0" / photo.name).rename(tmp_path / "train" / name / photo.name)
    with pytest.raises(UserError) as caught:
        build_finetuning(make_quick_config(source, tmp_path, f"data.fraction={fraction}"), World())
    assert str(caught.value) == f"{photo.stem}: has no label. Leave it out, or label it"


def test_settings_reach_what_they_are_of(source: Path, data: Path) -> None:
    words = ("drop_path=0.4", "data.crop=0.5", "data.image_size=[32, 24]", "data.repeats=2", "data.scale=[0.3, 0.4]")
    it = build_finetuning(
        make_quick_config(source, data, *words, "training.precision=bf16", "data.erasing=0.7"), World()
    )
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in it.classifier.backbone.encoder.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    assert it.classifier.spec.crop == 0.5
    assert (it.evaluator.view.crop, it.evaluator.view.size) == (0.5, (32, 24))
    assert it.evaluator.precision == torch.bfloat16
    assert it.task.num_views == 2
    with it.open_batches(0) as batches:
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


@pytest.mark.once
def test_shared_weights_come_to_the_same_end(source: Path, data: Path, tmp_path: Path) -> None:
    config = make_quick_config(source, data, "training.sharded=true")
    spawn(finetune_processes.run_rank, args=(config.model_dump_json(), tmp_path), nprocs=2)
    finetune(make_quick_config(source, data), tmp_path / "one", World())
    alone, shared = (read_finetune_result(tmp_path / name).metrics for name in ("one", "two"))
    assert [metric.label for metric in shared] == [metric.label for metric in alone]
    assert [metric.value for metric in shared] == pytest.approx([metric.value for metric in alone], rel=1e-3)
    assert load_classifier(tmp_path / "two").num_labels == 3


def test_both_sets_must_have_the_same_labels(source: Path, tmp_path: Path) -> None:
    write_train_test_sets(tmp_path)
    for name in ("rgb", "semantic"):
        (tmp_path / "test" / name / "class-2").rename(tmp_path / "test" / name / "class-3")
    with pytest.raises(UserError, match=r"other labels than .* differ in 'class-3'"):
        build_finetuning(make_quick_config(source, tmp_path), World())


def test_generated_sets_have_options_of_their_own(source: Path) -> None:
    words = ["data.train=generated", "data.test=generated", "data.train.options={size: 32, length: 8}"]
    words += ["data.test.options={size: 32, length: 5}"]
    it = build_finetuning(make_quick_config(source, Path(), *words), World())
    assert (len(it.scenes), len(it.evaluator.scenes)) == (8, 5)
    assert not torch.equal(it.scenes[0].maps["rgb"], it.evaluator.scenes[0].maps["rgb"])
    assert "Warning" not in it.protocol


def test_a_run_that_went_on_still_says_what_it_began_with(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_quick_config(source, data, "saving.steps=2")
    with monkeypatch.context() as patch:
        interrupt(patch, lambda step: step == 5, "evaluate")
        with pytest.raises(KeyboardInterrupt):
            finetune(config, tmp_path, World())
    (tmp_path / "checkpoints/step-00000004/checkpoint.json").write_text("{")  # the one before it serves
    finetune(config, tmp_path, World(), resume=True)
    report = json.loads((tmp_path / "evaluations/finetune/results.json").read_text())["load_report"]
    assert report == str(load_backbone(source).load_report)
    last = read_rows(RunDir(tmp_path).metrics)[-1]["test/top-1"]
    assert f"step 6: {last:.2f} % of 18 test photos right" in capsys.readouterr().err


def test_a_run_of_which_no_checkpoint_can_be_read_does_not_go_on(source: Path, data: Path, tmp_path: Path) -> None:
    config = make_quick_config(source, data)
    finetune(config, tmp_path, World())
    for path in (tmp_path / "checkpoints").glob("*/checkpoint.json"):
        path.write_text("{")
    with pytest.raises(UserError) as caught:
        finetune(config, tmp_path, World(), resume=True)
    told = f"{tmp_path / 'checkpoints'}: no checkpoint is intact. Restore one, or start again in another --out"
    assert str(caught.value) == told
