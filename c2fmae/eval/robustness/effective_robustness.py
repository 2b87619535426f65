"""Effective robustness: accuracy on a shifted set beyond that of models with the same accuracy on clean images.

The accuracies of models that are trained on ImageNet alone lie close to a line, if both axes have the logit scale. The
distance of another model from this line is its effective robustness (Taori et al., "Measuring Robustness to Natural
Distribution Shifts in Image Classification", 2020). ImageNet-A has no line: its images are errors of a ResNet-50, so
the accuracies of weaker and of stronger models are on two lines.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from c2fmae.eval.robustness.timm_results import list_published_accuracies

_SMALLEST_FRACTION = 1e-4  # the logit of 0 and of 1 is infinite
_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class AccuracyLine(NamedTuple):
    """A line between accuracies on clean images and on a shifted set, in logits."""

    slope: float
    intercept: float
    num_models: int
    spread: float
    """The standard deviation of the models' accuracies from the line, in points."""

    def predict(self, clean_accuracy: float) -> float:
        """Return the accuracy on the shifted set, in percent, for an accuracy on clean images, in percent."""
        return float(_predict(self.slope, self.intercept, np.array([clean_accuracy], np.float64))[0])


def list_reference_accuracies(suite: str) -> list[tuple[float, float]]:
    """Return the clean and the shifted accuracy of each reference model, in percent; empty for a set without a line."""
    if suite == "imagenet-r":
        return [(row.clean_imagenet_r, row.imagenet_r) for row in list_published_accuracies()]
    if suite == "sketch":
        return [(row.clean, row.sketch) for row in list_published_accuracies()]
    if suite == "imagenet-v2":
        return [(row.clean, row.imagenet_v2) for row in list_published_accuracies()]
    return []


@cache
def fit_accuracy_line(suite: str) -> AccuracyLine | None:
    """Return the line of the reference models on a set; None for a set without a line."""
    accuracies = list_reference_accuracies(suite)
    return fit_line(accuracies) if accuracies else None


def fit_line(accuracies: Sequence[tuple[float, float]]) -> AccuracyLine:
    """Return the least-squares line through pairs of clean and shifted accuracies, in percent, on the logit scale."""
    clean, shifted = np.array(accuracies).T
    slope, intercept = np.polyfit(_logit(clean), _logit(shifted), 1)
    spread = (shifted - _predict(slope, intercept, clean)).std()
    return AccuracyLine(float(slope), float(intercept), len(accuracies), float(spread))


def _predict(slope: float, intercept: float, clean: _Array) -> _Array:
    return 100 / (1 + np.exp(-(slope * _logit(clean) + intercept)))


def _logit(percent: _Array) -> _Array:
    fraction = np.clip(percent / 100, _SMALLEST_FRACTION, 1 - _SMALLEST_FRACTION)
    return np.log(fraction / (1 - fraction))
