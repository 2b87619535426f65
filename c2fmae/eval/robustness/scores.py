"""The numbers of robustness: pure functions of errors, as shares from 0 to 1, and of answers."""

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
"""The 15 corruptions, and the error that AlexNet makes on each, its mean over severities (Hendrycks & Dietterich)."""

NUM_CALIBRATION_BINS = 15
"""Of the confidence, for the calibration error."""

CellKey = tuple[str, int]
"""A corruption and its severity."""


class PaperScores(NamedTuple):
    """What the paper reports of a ViT-B fine-tuned on ImageNet: Table IV."""

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
    """Return the paper's one number for four, all in percent.

    >>> f"{compute_paper_score(35.2, 50.6, 37.4, 48.8):.1f}"
    '43.6'
    """
    return (a + r + sketch + (100 - mce)) / 4


def find_missing_cells(cells: Iterable[CellKey]) -> tuple[CellKey, ...]:
    """Return which of the 75 cells of the 15 corruptions are not there.

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
    """Return each of the 15 corruptions' error over AlexNet's, or over that of another model's errors.

    Both are summed over the severities before they are divided. One whose five severities are not all there has none.
    """
    baseline = (
        baseline
        if baseline is not None
        else {(name, severity): error for name, error in ALEXNET_ERRORS.items() for severity in SEVERITIES}
    )
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
    """Return the same of what each corruption adds to the error on clean photos, of both models."""
    return compute_corruption_errors(
        {cell: error - clean_error for cell, error in errors.items()},
        {cell: error - baseline_clean_error for cell, error in baseline.items()},
    )


def compute_mean_corruption_error(errors_by_corruption: Mapping[str, float]) -> float | None:
    """Return the mean over exactly the 15 corruptions, as mCE is; with one missing there is none."""
    return (
        sum(errors_by_corruption[name] for name in ALEXNET_ERRORS) / len(ALEXNET_ERRORS)
        if ALEXNET_ERRORS.keys() <= errors_by_corruption.keys()
        else None
    )


def compute_calibration_error(confidences: Float[Tensor, " photo"], is_correct: Bool[Tensor, " photo"]) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy, in bins of equal width.

    >>> compute_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
    0.25
    """
    bins = (confidences.double() * NUM_CALIBRATION_BINS).ceil().long().clamp(
        1, NUM_CALIBRATION_BINS
    ) - 1  # a bin holds its upper end, as is the custom
    bin_gaps = torch.zeros(NUM_CALIBRATION_BINS, dtype=torch.float64).index_add_(
        0, bins, confidences.double() - is_correct.double()
    )
    return bin_gaps.abs().sum().item() / len(confidences)


def compute_clustered_half_width(
    errors: Mapping[CellKey, tuple[Int64[Tensor, " photo"], Bool[Tensor, " photo"]]], weights: Mapping[CellKey, float]
) -> float | None:
    """Return half the 95 % interval of a weighted sum of cells' errors, whose photos are the same in many cells.

    A cell is the numbers of its photos and which of them were answered wrongly. What is drawn by chance is a photo,
    with all that is made of it: its share in the sum's deviation is added up over the cells before it is squared. Of
    fewer than two photos, or where all are answered alike, there is none.
    """
    num_images = max((int(image_ids.max()) + 1 for image_ids, _ in errors.values()), default=0)
    if num_images < 2:
        return None
    image_terms: Float64[Tensor, " photo"] = torch.zeros(num_images, dtype=torch.float64)
    for cell, (image_ids, is_wrong) in errors.items():
        wrong = is_wrong.double()
        image_terms.index_add_(0, image_ids, weights[cell] * (wrong - wrong.mean()) / len(wrong))
    half_width = NORMAL_QUANTILE_975 * (image_terms.square().sum() * num_images / (num_images - 1)).sqrt().item()
    return half_width or None
