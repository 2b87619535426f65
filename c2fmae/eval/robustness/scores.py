"""Scores of robustness: pure functions of errors, as fractions, and of predictions."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from c2fmae.data.corruption.names import SEVERITIES
from c2fmae.eval.intervals import NORMAL_QUANTILE_975

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's mean error over severities on each of the 15 corruptions (Hendrycks & Dietterich)."""

NUM_CALIBRATION_BINS = 15
"""Number of bins of the confidence in the calibration error."""

CellKey = tuple[str, int]
"""A corruption and its severity."""


class PaperScores(NamedTuple):
    """A row of the paper's Table IV, of a ViT-B fine-tuned on ImageNet."""

    a: float
    r: float
    sketch: float
    mce: float
    score: float


TABLE_IV = {
    "MAE": PaperScores(35.9, 48.3, 34.5, 51.7, 41.8),
    "MFM": PaperScores(32.7, 48.6, 34.8, 47.5, 42.2),
    "MultiMAE": PaperScores(33.2, 49.9, 37.2, 49.6, 42.7),
    "C2FMAE": PaperScores(35.2, 50.6, 37.4, 48.8, 43.6),
}


def compute_paper_score(a: float, r: float, sketch: float, mce: float) -> float:
    """Return the paper's Score of four metrics, all in percent.

    >>> f"{compute_paper_score(35.2, 50.6, 37.4, 48.8):.1f}"
    '43.6'
    """
    return (a + r + sketch + (100 - mce)) / 4


def find_missing_cells(cells: Iterable[CellKey]) -> tuple[CellKey, ...]:
    """Return the missing ones of the 75 cells of the 15 corruptions.

    >>> full = [(name, severity) for name in ALEXNET_ERRORS for severity in SEVERITIES]
    >>> find_missing_cells(full[1:])
    (('gaussian_noise', 1),)
    """
    present = set(cells)
    return tuple(
        (name, severity) for name in ALEXNET_ERRORS for severity in SEVERITIES if (name, severity) not in present
    )


def compute_corruption_errors(
    errors: Mapping[CellKey, float], baseline: Mapping[CellKey, float] | None = None
) -> dict[str, float]:
    """Return the error on each of the 15 corruptions divided by AlexNet's, or by that of a `baseline`.

    Both are summed over the severities before the division. A corruption without all five severities is left out.
    """
    if baseline is None:
        baseline = {(name, severity): error for name, error in ALEXNET_ERRORS.items() for severity in SEVERITIES}
    errors_by_corruption = {}
    for name in ALEXNET_ERRORS:
        cells = [(name, severity) for severity in SEVERITIES]
        if all(cell in errors and cell in baseline for cell in cells) and (
            baseline_sum := sum(baseline[cell] for cell in cells)
        ):
            errors_by_corruption[name] = sum(errors[cell] for cell in cells) / baseline_sum
    return errors_by_corruption


def compute_relative_corruption_errors(
    errors: Mapping[CellKey, float], clean_error: float, baseline: Mapping[CellKey, float], baseline_clean_error: float
) -> dict[str, float]:
    """Return `compute_corruption_errors` of the increase of the error over that on clean images, for both models."""
    return compute_corruption_errors(
        {cell: error - clean_error for cell, error in errors.items()},
        {cell: error - baseline_clean_error for cell, error in baseline.items()},
    )


def compute_mean_corruption_error(errors_by_corruption: Mapping[str, float]) -> float | None:
    """Return mCE as a fraction: the mean over the 15 corruptions. None if one is missing."""
    if not ALEXNET_ERRORS.keys() <= errors_by_corruption.keys():
        return None
    return sum(errors_by_corruption[name] for name in ALEXNET_ERRORS) / len(ALEXNET_ERRORS)


def compute_calibration_error(confidences: Float[Tensor, " image"], is_correct: Bool[Tensor, " image"]) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy, in bins of equal width.

    >>> compute_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
    0.25
    """
    bins = (confidences.double() * NUM_CALIBRATION_BINS).ceil().long()  # each bin includes its upper edge
    bins = bins.clamp(1, NUM_CALIBRATION_BINS) - 1
    gaps = confidences.double() - is_correct.double()
    bin_gaps = torch.zeros(NUM_CALIBRATION_BINS, dtype=torch.float64).index_add_(0, bins, gaps)
    return bin_gaps.abs().sum().item() / len(confidences)


def compute_clustered_half_width(
    errors: Mapping[CellKey, tuple[Int64[Tensor, " image"], Bool[Tensor, " image"]]], weights: Mapping[CellKey, float]
) -> float | None:
    """Return half the 95 % interval of a weighted sum of the errors of cells that share images.

    `errors` holds, for each cell, an index of each image and whether its prediction is wrong. The images are the
    independent samples: the deviations of an image are summed over the cells before they are squared. Returns None for
    fewer than two images or without any deviation.
    """
    num_images = max((int(image_ids.max()) + 1 for image_ids, _ in errors.values()), default=0)
    if num_images < 2:
        return None
    image_terms: Float64[Tensor, " image"] = torch.zeros(num_images, dtype=torch.float64)
    for cell, (image_ids, is_wrong) in errors.items():
        wrong = is_wrong.double()
        image_terms.index_add_(0, image_ids, weights[cell] * (wrong - wrong.mean()) / len(wrong))
    half_width = NORMAL_QUANTILE_975 * (image_terms.square().sum() * num_images / (num_images - 1)).sqrt().item()
    return half_width or None
