"""Effective robustness. Published accuracies are those of timm's table of results, which the package has a part of."""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2fmae.core.distributed import World
from c2fmae.data.suites import Cell, ShiftedSet
from c2fmae.eval.metrics import Metric
from c2fmae.eval.robustness.config import RobustnessEvaluation
from c2fmae.eval.robustness.effective_robustness import fit_accuracy_line, fit_line, list_reference_accuracies
from c2fmae.eval.robustness.evaluation import RobustnessResult, evaluate_robustness
from c2fmae.eval.robustness.tables import build_effective_robustness_charts
from c2fmae.eval.robustness.timm_results import list_published_accuracies
from tests.eval.robustness.colour_classifier import (
    IMAGENET_LABELS,
    make_class_image,
    make_colour_classifier,
    make_labelled_scenes,
    make_shifted_set,
)

pytestmark = pytest.mark.numeric


def logit(percent: float) -> float:
    return log(percent / (100 - percent))


def test_points_on_a_line_in_logits_have_no_distance_from_it() -> None:
    pairs = [(clean, 100 / (1 + np.exp(1 - 0.8 * logit(clean)))) for clean in (20.0, 50.0, 80.0, 90.0)]
    line = fit_line(pairs)
    assert (line.slope, line.intercept) == pytest.approx((0.8, -1))
    assert line.num_models == 4
    assert line.spread == pytest.approx(0, abs=1e-9)
    assert line.predict(50) == pytest.approx(100 / (1 + np.e))
    assert 0 <= line.predict(0) < line.predict(100) <= 100


@pytest.mark.parametrize("suite", ["imagenet-r", "sketch", "imagenet-v2"])
def test_the_line_is_the_least_squares_fit_of_the_published_accuracies(suite: str) -> None:
    pairs = np.array(list_reference_accuracies(suite))
    x, y = np.log(pairs / (100 - pairs)).T
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    line = fit_accuracy_line(suite)
    assert line is not None
    assert (line.slope, line.intercept) == pytest.approx((slope, y.mean() - slope * x.mean()))
    residuals = [shifted - line.predict(clean) for clean, shifted in pairs]
    assert line.spread == pytest.approx(np.std(residuals))
    assert np.corrcoef(x, y)[0, 1] ** 2 > 0.9


def test_the_published_accuracies_are_complete_and_plausible() -> None:
    rows = list_published_accuracies()
    assert len({row.model for row in rows}) == len(rows) == 103
    assert [row.clean for row in rows] == sorted(row.clean for row in rows)
    assert all(0 < row.sketch < row.imagenet_v2 < row.clean < 100 for row in rows)
    assert all(0 < row.imagenet_r < row.clean_imagenet_r < 100 for row in rows)


@pytest.mark.parametrize(
    ("suite", "clean", "shifted", "is_robust"),
    [  # published accuracies of models that are not in the table
        ("imagenet-r", 92.150, 36.157, False),  # resnet50.tv_in1k
        ("sketch", 76.156, 24.064, False),
        ("imagenet-r", 93.340, 38.140, False),  # vit_base_patch16_224.augreg_in1k
        ("sketch", 79.154, 27.973, False),
        ("imagenet-r", 96.360, 65.883, True),  # vit_base_patch16_clip_224.openai_ft_in1k
        ("sketch", 85.282, 50.993, True),
        ("imagenet-r", 97.770, 90.617, True),  # convnext_xxlarge.clip_laion2b_soup_ft_in1k
        ("sketch", 88.622, 70.062, True),
    ],
)
def test_only_models_with_more_training_data_are_far_above_the_line(
    suite: str, clean: float, shifted: float, is_robust: bool
) -> None:
    line = fit_accuracy_line(suite)
    assert line is not None
    distance = shifted - line.predict(clean)
    assert distance > 4 * line.spread if is_robust else abs(distance) < 2 * line.spread


def make_set(
    suite: str, num_wrong: int, labels: Any = IMAGENET_LABELS, expected_images: int | None = None, **options: Any
) -> ShiftedSet:
    """Return a set of ten images, the first of which are misclassified."""
    images = [(column, make_class_image((column + 1 if column < num_wrong else column) % 1000)) for column in range(10)]
    return make_shifted_set(
        [Cell(None, None, make_labelled_scenes(images), expected_images)], labels, suite=suite, **options
    )


def evaluate(shifted_set: ShiftedSet, clean: ShiftedSet, folder: Path, **options: Any) -> RobustnessResult:
    config = RobustnessEvaluation(workers=0)
    classifier = make_colour_classifier(**options)
    (result,) = evaluate_robustness(config, [classifier], [shifted_set], clean, [folder], World())
    return result


def find_distances(result: RobustnessResult) -> list[Metric]:
    return [metric for metric in result.metrics if metric.key == "effective_robustness"]


def test_the_distance_from_the_line_is_a_metric_with_a_chart(tmp_path: Path) -> None:
    result = evaluate(make_set("sketch", 4), make_set("imagenet-val", 1), tmp_path)
    line = fit_accuracy_line("sketch")
    assert line is not None
    (metric,) = find_distances(result)
    assert metric.value == pytest.approx(60 - line.predict(90))
    assert (metric.label, metric.unit, metric.count) == ("sketch: effective robustness", "points", 10)
    assert metric.notes == (
        f"the line of 103 models of timm is at {line.predict(90):.1f} %, and they differ from it by {line.spread:.1f} "
        "points (standard deviation)",
    )
    (chart,) = build_effective_robustness_charts([result])
    assert list(chart.series) == ["line", "models of timm", "planted"]
    assert chart.series["planted"][0] == pytest.approx((90, 60))
    assert len([y for _, y in chart.series["models of timm"] if not np.isnan(y)]) == 103
    assert "<b>" not in chart.to_html()


def test_the_line_of_imagenet_v2_is_that_of_matched_frequency(tmp_path: Path) -> None:
    (metric,) = find_distances(evaluate(make_set("imagenet-v2", 4), make_set("imagenet-val", 1), tmp_path))
    assert metric.notes[0].startswith("the line of 103 models of timm on images of matched frequency is at 82.0 %")


@pytest.mark.parametrize(
    ("shifted_set", "clean", "options"),
    [
        (make_set("imagenet-a", 4), make_set("imagenet-val", 1), {}),
        (make_set("sketch", 4), make_set("custom", 1, name="mine"), {}),
        (make_set("sketch", 4, creation_sentence="made by hand"), make_set("imagenet-val", 1), {}),
        (make_set("sketch", 4), make_set("imagenet-val", 1), {"labels": IMAGENET_LABELS[:500]}),
        (make_set("sketch", 4, expected_images=11), make_set("imagenet-val", 1), {}),
        (make_set("sketch", 4), make_set("imagenet-val", 1, expected_images=11), {}),
    ],
    ids=[
        *("a set without a line", "other clean images", "a self-made set", "a model that lacks classes"),
        *("an incomplete set", "incomplete clean images"),
    ],
)
def test_accuracies_by_another_protocol_have_no_distance_from_the_line(
    shifted_set: ShiftedSet, clean: ShiftedSet, options: dict[str, Any], tmp_path: Path
) -> None:
    result = evaluate(shifted_set, clean, tmp_path, **options)
    assert find_distances(result) == []
    assert build_effective_robustness_charts([result]) == []
