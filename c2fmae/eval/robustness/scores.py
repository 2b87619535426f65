"""The numbers of robustness: pure functions of errors, as shares from 0 to 1, and of answers."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from c2fmae.data.corruption.names import SEVERITIES
from c2fmae.eval.probes.intervals import NORMAL_95

ALEXNET = {
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

BINS = 15
"""Of the confidence, for the calibration error."""

Where = tuple[str, int]
"""A corruption and its severity."""


class PaperRow(NamedTuple):
    """What the paper reports of a ViT-B fine-tuned on ImageNet: Table IV."""

    a: float
    r: float
    sketch: float
    mce: float
    score: float


TABLE_IV = {
    "MAE": PaperRow(35.9, 48.3, 34.5, 51.7, 41.8),
    "MFM": PaperRow(32.7, 48.6, 34.8, 47.5, 42.2),
    "MultiMAE": PaperRow(33.2, 49.9, 37.2, 49.6, 42.7),
    "C2FMAE": PaperRow(35.2, 50.6, 37.4, 48.8, 43.6),
}


def paper_score(a: float, r: float, sketch: float, mce: float) -> float:
    """Return the paper's one number for four, all in percent.

    >>> f"{paper_score(35.2, 50.6, 37.4, 48.8):.1f}"
    '43.6'
    """
    return (a + r + sketch + (100 - mce)) / 4


def missing_cells(found: Iterable[Where]) -> tuple[Where, ...]:
    """Return which of the 75 cells of the 15 corruptions are not there.

    >>> full = [(name, severity) for name in ALEXNET for severity in SEVERITIES]
    >>> missing_cells(full[1:])
    (('gaussian_noise', 1),)
    """
    there = set(found)
    return tuple((name, severity) for name in ALEXNET for severity in SEVERITIES if (name, severity) not in there)


def corruption_errors(errors: Mapping[Where, float], by: Mapping[Where, float] | None = None) -> dict[str, float]:
    """Return each of the 15 corruptions' error over AlexNet's, or over that of another model's errors.

    Both are summed over the severities before they are divided. One whose five severities are not all there has none.
    """
    by = (
        by
        if by is not None
        else {(name, severity): error for name, error in ALEXNET.items() for severity in SEVERITIES}
    )
    found = {}
    for name in ALEXNET:
        cells = [(name, severity) for severity in SEVERITIES]
        if all(cell in errors and cell in by for cell in cells) and (divisor := sum(by[cell] for cell in cells)):
            found[name] = sum(errors[cell] for cell in cells) / divisor
    return found


def relative_corruption_errors(
    errors: Mapping[Where, float], clean: float, by: Mapping[Where, float], by_clean: float
) -> dict[str, float]:
    """Return the same of what each corruption adds to the error on clean photos, of both models."""
    return corruption_errors(
        {cell: error - clean for cell, error in errors.items()}, {cell: error - by_clean for cell, error in by.items()}
    )


def mean_over_corruptions(found: Mapping[str, float]) -> float | None:
    """Return the mean over exactly the 15 corruptions, as mCE is; with one missing there is none."""
    return sum(found[name] for name in ALEXNET) / len(ALEXNET) if ALEXNET.keys() <= found.keys() else None


def calibration_error(confidences: Float[Tensor, " photo"], is_right: Bool[Tensor, " photo"]) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy, in bins of equal width.

    >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
    0.25
    """
    bins = (confidences.double() * BINS).ceil().long().clamp(1, BINS) - 1  # a bin holds its upper end, as is the custom
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidences.double() - is_right.double())
    return gaps.abs().sum().item() / len(confidences)


def clustered_reach(
    errors: Mapping[Where, tuple[Int64[Tensor, " photo"], Bool[Tensor, " photo"]]], weights: Mapping[Where, float]
) -> float | None:
    """Return half the 95 % interval of a weighted sum of cells' errors, whose photos are the same in many cells.

    A cell is the numbers of its photos and which of them were answered wrongly. What is drawn by chance is a photo,
    with all that is made of it: its share in the sum's deviation is added up over the cells before it is squared. Of
    fewer than two photos, or where all are answered alike, there is none.
    """
    count = max((int(photos.max()) + 1 for photos, _ in errors.values()), default=0)
    if count < 2:
        return None
    shares: Float64[Tensor, " photo"] = torch.zeros(count, dtype=torch.float64)
    for cell, (photos, is_wrong) in errors.items():
        wrong = is_wrong.double()
        shares.index_add_(0, photos, weights[cell] * (wrong - wrong.mean()) / len(wrong))
    reach = NORMAL_95 * (shares.square().sum() * count / (count - 1)).sqrt().item()
    return reach or None
