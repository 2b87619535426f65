from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.eval.evaluation import EVALUATIONS
from c2fmae.eval.intervals import wilson_interval
from c2fmae.eval.probes.config import FeatureColumn, KnnEvaluation
from c2fmae.eval.probes.train_test import draw_label_subsets, extract_labelled_sets
from tests.eval.tiny_backbones import (
    compute_metrics,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
    write_scenes,
)

pytestmark = pytest.mark.numeric

SETTINGS = {"workers": 0, "batch_size": 16, "ks": (1, 3, 10)}


def write_sets(root: Path, train: list[Scene], test: list[Scene]) -> dict[str, str]:
    return {"train": write_scenes(root / "train", train), "test": write_scenes(root / "test", test)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sets")
    return write_sets(
        root, draw_coloured_scenes(60, labels=4, noise=120), draw_coloured_scenes(40, labels=4, noise=120, seed=1)
    )


def test_the_knn_evaluation_is_registered() -> None:
    assert EVALUATIONS.get("knn") is KnnEvaluation


def test_accuracies_equal_scikit_learns_on_the_same_features(sets: dict[str, str], tmp_path: Path) -> None:
    config, model = KnnEvaluation(**sets, **SETTINGS), make_tiny_model_under_test(tiny_backbone(), tmp_path)
    metrics = compute_metrics(config, model)
    features = extract_labelled_sets(config, model)
    column = FeatureColumn(3, "mean")
    for k in config.ks:
        for votes, weights in (
            ("plain", "uniform"),
            ("weighted", lambda distance: np.exp((1 - distance) / config.temperature)),
        ):
            theirs = KNeighborsClassifier(k, weights=weights, metric="cosine")
            theirs.fit(features.train.read_tensor(column).double(), features.train.labels)
            score = theirs.score(features.test.read_tensor(column).double(), features.test.labels)
            metric = metrics[f"top-1, {votes} votes, k = {k}"]
            assert metric.value == pytest.approx(100 * score, abs=1e-9)
            assert metric.count == 40
            assert metric.interval is not None
            assert metric.interval == wilson_interval(score, 40, scale=100)


def test_accuracy_on_random_labels_is_at_chance_level(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(200) % 4)
    train = [
        Scene(s.key, s.maps, int(label)) for s, label in zip(draw_coloured_scenes(200, labels=4), shuffled, strict=True)
    ]
    shuffled = np.random.default_rng(1).permutation(np.arange(200) % 4)
    test = [
        Scene(s.key, s.maps, int(label))
        for s, label in zip(draw_coloured_scenes(200, labels=4, seed=1), shuffled, strict=True)
    ]
    metrics = compute_metrics(
        KnnEvaluation(**write_sets(tmp_path, train, test), **SETTINGS),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    assert abs(metrics["top-1, plain votes, k = 10"].value - 25) < 9.2  # three standard deviations of 200 guesses


def test_fractions_of_the_labels_use_only_the_drawn_rows(sets: dict[str, str], tmp_path: Path) -> None:
    config, model = (
        KnnEvaluation(**sets, **SETTINGS, fractions=(0.5,)),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    features, column = extract_labelled_sets(config, model), FeatureColumn(3, "mean")
    ((_, (rows,)),) = draw_label_subsets(config, features.train.labels)
    theirs = KNeighborsClassifier(3, metric="cosine")
    theirs.fit(features.train.read_tensor(column)[rows].double(), features.train.labels[rows])
    score = theirs.score(features.test.read_tensor(column).double(), features.test.labels)
    assert compute_metrics(config, model)["top-1, plain votes, k = 3, 50 % of the labels"].value == pytest.approx(
        100 * score
    )


def test_each_layer_pooling_and_fraction_of_the_labels_has_its_own_metrics(
    sets: dict[str, str], tmp_path: Path
) -> None:
    config = KnnEvaluation(**sets, **SETTINGS, layers=(1, 3), pools=("mean", "cls"), fractions=(0.5, 1), seeds=3)
    metrics = compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert "layer 1: top-1, plain votes, k = 3, cls" in metrics
    assert metrics["layer 3: top-1, plain votes, k = 3, mean, 50 % of the labels"].interval is None
    spread = metrics["layer 3: top-1, standard deviation over seeds, plain votes, k = 3, mean, 50 % of the labels"]
    assert spread.count == 3


def test_the_train_test_overlap_is_measured_and_a_large_one_rejected(tmp_path: Path) -> None:
    train, test = draw_coloured_scenes(20), draw_coloured_scenes(8, seed=1)
    few = [*test, *train[:2]]
    metrics = compute_metrics(
        KnnEvaluation(**write_sets(tmp_path / "few", train, few), **SETTINGS),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    assert metrics["train/test overlap"].value == 20
    config = KnnEvaluation(**write_sets(tmp_path / "most", train, [*test[:3], *train[:12]]), **SETTINGS)
    with pytest.raises(
        UserError, match=r"^test: 80% of the images of .*/most/test are in the training set too, so the accuracy"
    ):
        compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))


def test_scenes_without_labels_are_rejected(tmp_path: Path) -> None:
    train = [Scene(s.key, s.maps) for s in draw_coloured_scenes(6)]
    test = [Scene(s.key, s.maps) for s in draw_coloured_scenes(6, seed=1)]
    config = KnnEvaluation(**write_sets(tmp_path, train, test), **SETTINGS)
    with pytest.raises(UserError) as caught:
        compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert str(caught.value) == (
        f"train: {tmp_path}/train has no labels. Use a labelled set, or `eval dense` for semantic maps"
    )


def test_numbers_of_neighbours_above_the_training_set_are_skipped_and_rejected_if_alone(tmp_path: Path) -> None:
    sets = write_sets(tmp_path, draw_coloured_scenes(6), draw_coloured_scenes(6, seed=1))
    metrics = compute_metrics(
        KnnEvaluation(**sets, workers=0, ks=(3, 7)), make_tiny_model_under_test(tiny_backbone(), tmp_path)
    )
    assert "top-1, plain votes, k = 3" in metrics
    assert "top-1, plain votes, k = 7" not in metrics
    with pytest.raises(
        UserError, match=r"^ks: expected a number up to 6, the number of training images, got \[7\]. Add one$"
    ):
        compute_metrics(
            KnnEvaluation(**sets, workers=0, ks=(7,)), make_tiny_model_under_test(tiny_backbone(), tmp_path)
        )


def test_missing_layers_are_rejected(sets: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^layers: expected blocks from 1 to 3, got 4$"):
        compute_metrics(KnnEvaluation(**sets, layers=(4,)), make_tiny_model_under_test(tiny_backbone(), tmp_path))
