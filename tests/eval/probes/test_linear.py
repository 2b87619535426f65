from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from c2fmae.core.scene import Scene
from c2fmae.eval.evaluation import EVALUATIONS
from c2fmae.eval.probes.config import FeatureColumn, LinearProbeEvaluation
from c2fmae.eval.probes.lars import fit_lars_probe
from c2fmae.eval.probes.train_test import extract_labelled_sets
from tests.eval.tiny_backbones import (
    compute_metrics,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
    write_scenes,
)

pytestmark = pytest.mark.numeric

SETTINGS = {"workers": 0, "batch_size": 64}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sets")
    kinds = {
        "train": draw_coloured_scenes(160, labels=8, noise=160),
        "test": draw_coloured_scenes(120, labels=8, noise=160, seed=1),
    }
    return {part: write_scenes(root / part, scenes) for part, scenes in kinds.items()}


def test_the_linear_probe_is_registered() -> None:
    assert EVALUATIONS.get("linear") is LinearProbeEvaluation


def test_accuracy_is_close_to_scikit_learns_on_the_same_features(sets: dict[str, str], tmp_path: Path) -> None:
    config, model = (
        LinearProbeEvaluation(**sets, **SETTINGS, lrs=(0.3,), weight_decays=(0.01,)),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    metrics, pair = compute_metrics(config, model), extract_labelled_sets(config, model)
    features, tests = (store.read_tensor(FeatureColumn(3, "mean")).numpy() for store in (pair.train, pair.test))
    mean, std = features.mean(0), features.std(0)
    theirs = LogisticRegression(C=1 / (0.01 * len(features)), max_iter=2000)
    theirs.fit((features - mean) / std, pair.train.labels)
    score = 100 * theirs.score((tests - mean) / std, pair.test.labels)
    assert 30 < score < 100
    assert abs(metrics["top-1"].value - score) <= 100 / 120 + 1e-9  # one image of 120
    assert metrics["top-5"].value >= metrics["top-1"].value
    assert metrics["top-1"].count == 120


def test_the_chosen_settings_are_noted(sets: dict[str, str], tmp_path: Path) -> None:
    config = LinearProbeEvaluation(
        **sets, **SETTINGS, layers=(1, 3), pools=("mean", "cls"), lrs=(0.1,), weight_decays=(0.01,), epochs=3
    )
    metrics = compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert metrics["top-1"].notes[0].startswith("layer ")
    assert metrics["top-1"].notes[0].endswith(", learning rate 0.1, weight decay 0.01")
    assert metrics["top-5"].notes == ()


def test_accuracy_on_random_labels_is_at_chance_level(sets: dict[str, str], tmp_path: Path) -> None:
    random_labels = np.random.default_rng(0).permutation(np.arange(200) % 8)
    test = [
        Scene(scene.key, scene.maps, int(label))
        for scene, label in zip(draw_coloured_scenes(200, labels=8, seed=2), random_labels, strict=True)
    ]
    config = LinearProbeEvaluation(
        train=sets["train"], test=write_scenes(tmp_path / "test", test), **SETTINGS, epochs=10
    )
    assert abs(compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))["top-1"].value - 12.5) < 8


def test_the_choice_of_settings_does_not_depend_on_the_test_set(sets: dict[str, str], tmp_path: Path) -> None:
    other = [
        Scene(scene.key, scene.maps, 7 - (scene.label or 0)) for scene in draw_coloured_scenes(40, labels=8, seed=3)
    ]
    notes = [
        compute_metrics(
            LinearProbeEvaluation(train=sets["train"], test=test, **SETTINGS, epochs=5),
            make_tiny_model_under_test(tiny_backbone(), tmp_path),
        )["top-1"].notes
        for test in (sets["test"], write_scenes(tmp_path / "other", other))
    ]
    assert notes[0] == notes[1]


def test_fractions_of_the_labels_are_drawn_for_each_seed(sets: dict[str, str], tmp_path: Path) -> None:
    config = LinearProbeEvaluation(**sets, **SETTINGS, epochs=5, fractions=(0.5,), seeds=2)
    metrics = compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert set(metrics) == {
        "train/test overlap",
        *(
            f"{name}{statistic}, 50 % of the labels"
            for name in ("top-1", "top-5")
            for statistic in ("", ", standard deviation over seeds")
        ),
    }


def test_the_mae_variant_fits_with_lars(sets: dict[str, str], tmp_path: Path) -> None:
    config, model = (
        LinearProbeEvaluation(**sets, **SETTINGS, variant="mae"),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    metrics, pair = compute_metrics(config, model), extract_labelled_sets(config, model)
    column = FeatureColumn(3, "mean")
    rows = torch.arange(160)
    probe = fit_lars_probe(pair.train.read_tensor(column), pair.train.labels, rows=rows, num_labels=8, seed=0)
    accuracy = (probe.predict(pair.test.read_tensor(column)) == pair.test.labels).double().mean().item()
    assert metrics["top-1"].value == pytest.approx(100 * accuracy)
    assert metrics["top-1"].notes == ("layer 3, mean",)
    assert "LARS with momentum 0.9" in config.describe_protocol(model)
