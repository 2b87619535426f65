from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.intervals import wilson_interval
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes.config import KnnEvaluation
from c2fmae.eval.probes.feature_spec import FeatureColumn
from c2fmae.eval.probes.train_test import draw_label_subsets, extract_labelled_sets
from tests.eval.tiny_backbones import draw_coloured_scenes, make_tiny_model_under_test, tiny_backbone, write_scenes

pytestmark = pytest.mark.numeric

SETTINGS = {"workers": 0, "batch_size": 16, "ks": (1, 3, 10)}


def pair(root: Path, train: list[Scene], test: list[Scene]) -> dict[str, str]:
    return {"train": write_scenes(root / "train", train), "test": write_scenes(root / "test", test)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sets")
    return pair(
        root, draw_coloured_scenes(60, labels=4, noise=120), draw_coloured_scenes(40, labels=4, noise=120, seed=1)
    )


def found(config: KnnEvaluation, who: ModelUnderTest) -> dict[str, Metric]:
    return {metric.label: metric for metric in config.run(who)}


def test_it_is_registered() -> None:
    assert EVALUATIONS.get("knn") is KnnEvaluation


def test_its_figures_are_scikit_learns_on_the_same_features(sets: dict[str, str], tmp_path: Path) -> None:
    config, who = KnnEvaluation(**sets, **SETTINGS), make_tiny_model_under_test(tiny_backbone(), tmp_path)
    metrics = found(config, who)
    features = extract_labelled_sets(config, who)
    column = FeatureColumn(3, "mean")
    for k in config.ks:
        for way, weights in (
            ("plain", "uniform"),
            ("weighted", lambda distance: np.exp((1 - distance) / config.temperature)),
        ):
            theirs = KNeighborsClassifier(k, weights=weights, metric="cosine")
            theirs.fit(features.train.read_tensor(column).double(), features.train.labels)
            score = theirs.score(features.test.read_tensor(column).double(), features.test.labels)
            metric = metrics[f"top-1, {way} votes, k = {k}"]
            assert metric.value == pytest.approx(100 * score, abs=1e-9)
            assert metric.count == 40
            assert metric.interval is not None
            assert metric.interval == wilson_interval(score, 40, scale=100)


def test_labels_that_mean_nothing_are_found_by_chance(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(200) % 4)
    train = [Scene(s.key, s.maps, int(n)) for s, n in zip(draw_coloured_scenes(200, labels=4), shuffled, strict=True)]
    shuffled = np.random.default_rng(1).permutation(np.arange(200) % 4)
    test = [
        Scene(s.key, s.maps, int(n)) for s, n in zip(draw_coloured_scenes(200, labels=4, seed=1), shuffled, strict=True)
    ]
    metrics = found(
        KnnEvaluation(**pair(tmp_path, train, test), **SETTINGS), make_tiny_model_under_test(tiny_backbone(), tmp_path)
    )
    assert abs(metrics["top-1, plain votes, k = 10"].value - 25) < 9.2  # three deviations of 200 guesses


def test_fewer_labels_are_those_of_the_rows_drawn(sets: dict[str, str], tmp_path: Path) -> None:
    config, who = (
        KnnEvaluation(**sets, **SETTINGS, fractions=(0.5,)),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    both, column = extract_labelled_sets(config, who), FeatureColumn(3, "mean")
    ((_, (rows,)),) = draw_label_subsets(config, both.train.labels)
    theirs = KNeighborsClassifier(3, metric="cosine")
    theirs.fit(both.train.read_tensor(column)[rows].double(), both.train.labels[rows])
    score = theirs.score(both.test.read_tensor(column).double(), both.test.labels)
    assert found(config, who)["top-1, plain votes, k = 3, 50 % of the labels"].value == pytest.approx(100 * score)


def test_layers_poolings_and_shares_of_the_labels_are_figures_of_their_own(
    sets: dict[str, str], tmp_path: Path
) -> None:
    config = KnnEvaluation(**sets, **SETTINGS, layers=(1, 3), pools=("mean", "cls"), fractions=(0.5, 1), seeds=3)
    metrics = found(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert "layer 1: top-1, plain votes, k = 3, cls" in metrics
    assert metrics["layer 3: top-1, plain votes, k = 3, mean, 50 % of the labels"].interval is None
    spread = metrics["layer 3: top-1, standard deviation over seeds, plain votes, k = 3, mean, 50 % of the labels"]
    assert spread.count == 3


def test_photos_in_both_sets_are_counted_and_mostly_the_same_are_refused(tmp_path: Path) -> None:
    train, test = draw_coloured_scenes(20), draw_coloured_scenes(8, seed=1)
    few = [*test, *train[:2]]
    metrics = found(
        KnnEvaluation(**pair(tmp_path / "few", train, few), **SETTINGS),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    assert metrics["train/test overlap"].value == 20
    config = KnnEvaluation(**pair(tmp_path / "most", train, [*test[:3], *train[:12]]), **SETTINGS)
    with pytest.raises(
        UserError, match=r"^test: 80% of the images of .*/most/test are in the training set too, so accuracy"
    ):
        found(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))


def test_scenes_without_labels_are_refused(tmp_path: Path) -> None:
    train = [Scene(s.key, s.maps) for s in draw_coloured_scenes(6)]
    test = [Scene(s.key, s.maps) for s in draw_coloured_scenes(6, seed=1)]
    config = KnnEvaluation(**pair(tmp_path, train, test), **SETTINGS)
    with pytest.raises(UserError) as caught:
        found(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert str(caught.value) == (
        f"train: {tmp_path}/train has no labels. Use a labelled set, or `eval dense` for semantic maps"
    )


def test_more_neighbours_than_there_are_is_refused_and_fewer_are_left_out(tmp_path: Path) -> None:
    sets = pair(tmp_path, draw_coloured_scenes(6), draw_coloured_scenes(6, seed=1))
    metrics = found(KnnEvaluation(**sets, workers=0, ks=(3, 7)), make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert "top-1, plain votes, k = 3" in metrics
    assert "top-1, plain votes, k = 7" not in metrics
    with pytest.raises(
        UserError, match=r"^ks: there are 6 training images, fewer than each of \[7\]. Add a smaller number$"
    ):
        found(KnnEvaluation(**sets, workers=0, ks=(7,)), make_tiny_model_under_test(tiny_backbone(), tmp_path))


def test_a_layer_that_is_not_there_is_refused(sets: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^layers: expected blocks from 1 to 3, got 4$"):
        found(KnnEvaluation(**sets, layers=(4,)), make_tiny_model_under_test(tiny_backbone(), tmp_path))
