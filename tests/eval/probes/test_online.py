"""Probes of the encoder during pre-training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from c2fmae.config.data import DatasetConfig
from c2fmae.config.watching import OnlineProbesConfig
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.scene import Scene
from c2fmae.data import open_scenes
from c2fmae.data.combine import LimitedScenes
from c2fmae.data.generated import GeneratedScenes
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.datasets import OpenedSet
from c2fmae.eval.metrics import find_metric
from c2fmae.eval.probes.config import QUICK_SWEEP, KnnEvaluation, LinearProbeEvaluation
from c2fmae.eval.probes.online import OnlineProbes, open_online_probes
from c2fmae.models.backbones import load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe
from tests.eval.tiny_backbones import (
    SPEC,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
    write_scenes,
)

pytestmark = pytest.mark.unchecked


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for split, count, seed in (("train", 90, 0), ("test", 66, 1)):
        write_scenes(root / split, draw_coloured_scenes(count, labels=6, noise=160, seed=seed))
    return root


def open_probes(data: Path | str, **settings: Any) -> OnlineProbes:
    config = OnlineProbesConfig(data=str(data), **settings)
    return open_online_probes(config, SPEC, None, World(), num_workers=0)


@pytest.mark.numeric
def test_accuracies_equal_those_of_the_evaluations(data: Path, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    accuracies = open_probes(data).compute_accuracies(backbone.state_dict())
    sets, model = {"train": str(data / "train"), "test": str(data / "test"), "workers": 0}, tmp_path / "cache"
    under_test = make_tiny_model_under_test(backbone, model)
    knn = find_metric(KnnEvaluation(**sets, ks=(20,)).run(under_test), "top1", votes="weighted", k=20)
    linear = find_metric(LinearProbeEvaluation(**sets, **QUICK_SWEEP, epochs=40).run(under_test), "top1")
    assert knn is not None
    assert linear is not None
    assert accuracies == {"probe/knn": pytest.approx(knn.value), "probe/linear": pytest.approx(linear.value)}
    assert 20 < accuracies["probe/knn"] < 100


def test_accuracies_are_those_of_the_given_weights(data: Path) -> None:
    probes = open_probes(data, names=["knn"])
    weights, averages = (tiny_backbone(seed=seed).state_dict() for seed in (0, 1))
    first, second = probes.compute_accuracies(weights), probes.compute_accuracies(weights | averages)
    assert list(first) == list(probes.keys) == ["probe/knn"]
    assert second == open_probes(data, names=["knn"]).compute_accuracies(averages)
    assert second != first == probes.compute_accuracies(weights)


def test_a_limit_draws_the_same_images_of_several_labels(data: Path) -> None:
    train, test = open_probes(data, train_samples=30, test_samples=12)._images
    assert (len(train.labels), len(test.labels)) == (30, 12)
    assert len(train.labels.unique()) == 6  # every sixth image has the same label
    again = open_probes(data, train_samples=30, test_samples=12)._images[0]
    assert torch.equal(train.chunks[0][1], again.chunks[0][1])


def test_the_untrained_and_the_last_encoder_are_probed(data: Path) -> None:
    steps = range(26)
    assert [step for step in steps if open_probes(data).is_due(step, 25)] == [*range(0, 25, 2), 25]
    assert [step for step in steps if open_probes(data, every=10).is_due(step, 25)] == [0, 10, 20, 25]


def test_features_that_are_not_finite_have_no_accuracy(data: Path) -> None:
    weights = tiny_backbone().state_dict()
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    assert all(map(math.isnan, open_probes(data).compute_accuracies(broken).values()))


def test_generated_scenes_are_unseen_ones_like_those_of_the_run() -> None:
    run = DatasetConfig(name="generated", options={"size": 64, "difficulty": "plain", "length": 8192, "seed": 11})
    spec = SPEC.model_copy(update={"image_size": (32, 32)})

    def open_generated(config: OnlineProbesConfig, training_data: Any) -> list[Any]:
        opened = open_online_probes(config, spec, training_data, World(), num_workers=0)
        return [each.scenes.source for each in opened.sets]  # type: ignore[attr-defined]

    config = OnlineProbesConfig(data="generated", test_samples=8)
    assert open_generated(config, run) == [
        GeneratedScenes(size=32, difficulty="plain", length=2048, seed=12001),
        GeneratedScenes(size=32, difficulty="plain", length=8, seed=12002),
    ]
    assert open_generated(config, ("photos", run)) == open_generated(config, run)
    assert open_generated(config, "photos")[1] == GeneratedScenes(size=32, length=8, seed=1002)
    harder = OnlineProbesConfig(data={"name": "generated", "options": {"difficulty": "hard"}})
    assert open_generated(harder, run)[1] == GeneratedScenes(size=32, difficulty="hard", length=1024, seed=12002)
    with pytest.raises(UserError, match=r"^watching\.probes: test: is required with this data"):
        open_generated(OnlineProbesConfig(data={"name": "generated", "options": {"seed": 5}}), run)


def write_pair(root: Path, train: list[Scene], test: list[Scene]) -> Path:
    write_scenes(root / "train", train)
    write_scenes(root / "test", test)
    return root


def test_data_that_cannot_be_probed_is_an_error_before_training(data: Path, tmp_path: Path) -> None:
    train, test = draw_coloured_scenes(12), draw_coloured_scenes(6, seed=1)
    unlabelled = write_pair(tmp_path / "unlabelled", [Scene(s.key, s.maps, None) for s in train], test)
    write_scenes(unlabelled / "other", [Scene(s.key, s.maps, None) for s in test])
    renamed = write_pair(tmp_path / "renamed", train, [s for s in test if s.label])
    with pytest.raises(UserError, match=r"^watching\.probes: test: .* has other labels than "):
        open_probes(unlabelled)
    with pytest.raises(UserError, match=r"^watching\.probes: train: .* has no labels\. Use a labelled set"):
        open_probes(unlabelled / "train", test=str(unlabelled / "other"))
    with pytest.raises(UserError, match=r"^watching\.probes: test: .* has other labels than "):
        open_probes(renamed)
    with pytest.raises(UserError, match=r"^watching\.probes: nothing: is not a folder with a training and a test set"):
        open_probes("nothing")
    with pytest.raises(UserError, match=r"^watching\.probes: test: expected other scenes than those of watching"):
        open_probes(data / "train", test=str(data / "train"))
    with pytest.raises(UserError, match=r"^watching\.probes: test: is required with this data"):
        find_and_open_list(data)
    grey = SPEC.model_copy(update={"channels": {"rgb": 1}, "mean": (0.5,), "std": (0.2,)})
    with pytest.raises(UserError, match=r"^watching\.probes: train: the images of .* have 3 channels, but the encoder"):
        open_online_probes(OnlineProbesConfig(data=str(data)), grey, None, World(), num_workers=0)
    maps_only = SPEC.model_copy(update={"channels": {"semantic": 3}})
    with pytest.raises(UserError, match=r"^watching\.probes: the probes need an encoder of images"):
        open_online_probes(OnlineProbesConfig(data=str(data)), maps_only, None, World(), num_workers=0)


def find_and_open_list(data: Path) -> None:
    config = OnlineProbesConfig(data=[str(data / "train"), str(data / "test")])
    open_online_probes(config, SPEC, None, World(), num_workers=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 8, r"^watching\.probes: train: expected at least 5 images of two labels, got 8 of 1\. Use more images"),
        ([0, 1, 0], r"^watching\.probes: train: expected at least 5 images of two labels, got 3 of 2\."),
        ([0, 1, 0, 1, None], r"^watching\.probes: train: 1 of 5 images of .* have no label\. Label them"),
    ],
)
def test_labels_that_do_not_suffice_are_an_error_before_training(
    tmp_path: Path, labels: list[int | None], message: str
) -> None:
    scenes = [
        Scene(s.key if label is not None else "last", s.maps, label)
        for s, label in zip(draw_coloured_scenes(8), labels, strict=False)
    ]
    data = write_pair(tmp_path, scenes, scenes)
    with pytest.raises(UserError, match=message):
        open_probes(data)
    sets = [LimitedScenes(open_scenes(data / split, granularities=("rgb",)), 8) for split in ("train", "test")]
    opened = tuple(OpenedSet(each, str(data), "") for each in sets)  # labels that only loading shows
    assert len(opened) == 2
    with pytest.raises(UserError, match=message):
        OnlineProbes(OnlineProbesConfig(data=str(data)), SPEC, opened, World(), 0).compute_accuracies(
            tiny_backbone().state_dict()
        )


def test_the_last_accuracies_are_those_of_the_averaged_weights_in_the_checkpoint(tmp_path: Path) -> None:
    small = ("train_samples=64", "test_samples=32", "data=generated", "names=[knn]")
    config = load_recipe(
        "c2fmae-debug",
        [
            *(f"watching.probes.{setting}" for setting in small),
            *("training.ema=0.5", "training.steps=2", "training.warmup_steps=0", "training.precision=fp32"),
            *("watching.figures=0", "data.held_out=null"),
        ],
    )
    pretrain(config, tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "probe/knn" in row]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert config.watching.probes is not None
    backbone = load_backbone(tmp_path / "run", use_ema=True)
    probes = open_online_probes(config.watching.probes, backbone.spec, config.data.train, World(), num_workers=0)
    assert probes.compute_accuracies(backbone.state_dict()) == {"probe/knn": rows[-1]["probe/knn"]}
    other = load_backbone(tmp_path / "run").state_dict()
    assert not all(tensor.equal(other[name]) for name, tensor in backbone.state_dict().items())


def test_fine_tuning_has_no_probes() -> None:
    with pytest.raises(UserError, match="watching.probes: no such setting"):
        FinetuneConfig(init="a").override(["watching.probes.data=generated"])
