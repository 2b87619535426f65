"""Scores of a segmenter: one confusion matrix of all pixels, and what each image adds to it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from c2fmae.eval.confusion import (
    ClassTotals,
    class_totals,
    totals_to_accuracies,
    totals_to_ious,
    totals_to_overall_accuracy,
)
from c2fmae.eval.intervals import ScoreInterval, bootstrap_scores


@dataclass(frozen=True)
class SegmentationScores:
    """Counts of labelled pixels, from which all scores are computed."""

    confusion: Int64[Tensor, "truth predicted"]
    """The number of pixels of all images by true and predicted class."""
    image_totals: Int64[Tensor, "image 3 class"]
    """The correct, the true and the predicted pixels of each class in each image."""

    @property
    def num_images(self) -> int:
        """The number of images."""
        return len(self.image_totals)

    @property
    def num_pixels(self) -> int:
        """The number of labelled pixels."""
        return int(self.confusion.sum())

    @cached_property
    def totals(self) -> Int64[Tensor, "3 class"]:
        """The correct, the true and the predicted pixels of each class."""
        return class_totals(self.confusion)

    @property
    def ious(self) -> Float64[Tensor, " class"]:
        """The intersection over union of each class; NaN for a class that neither occurs nor is predicted."""
        return totals_to_ious(self.totals)

    @property
    def accuracies(self) -> Float64[Tensor, " class"]:
        """The fraction of each class's pixels that are predicted correctly; NaN for a class that does not occur."""
        return totals_to_accuracies(self.totals)

    @property
    def num_scored_classes(self) -> int:
        """The number of classes that occur or are predicted: the others have no part in the mean IoU."""
        return int((~self.ious.isnan()).sum())

    @property
    def mean_iou(self) -> float:
        """The mean intersection over union of the classes that occur or are predicted."""
        return self.ious.nanmean().item()

    @property
    def mean_accuracy(self) -> float:
        """The mean accuracy of the classes that occur."""
        return self.accuracies.nanmean().item()

    @property
    def pixel_accuracy(self) -> float:
        """The fraction of all labelled pixels that are predicted correctly."""
        return totals_to_overall_accuracy(self.totals).item()

    def image_ious(self) -> Float64[Tensor, " image"]:
        """Return the mean IoU of each image alone, by which examples are chosen; NaN for an image without labels.

        Their mean is not `mean_iou`, which counts the pixels of all images together.
        """
        has_labels = self.image_totals[:, 1].sum(dim=1) > 0
        return totals_to_ious(self.image_totals).nanmean(dim=1).where(has_labels, torch.nan)

    def images_with_class(self) -> Int64[Tensor, " class"]:
        """Return the number of images in which each class occurs."""
        return (self.image_totals[:, 1] > 0).sum(dim=0)

    def bootstrap(self, *, seed: int = 0) -> dict[str, ScoreInterval]:
        """Return `mean_iou`, `mean_accuracy` and `pixel_accuracy` with their intervals."""
        return bootstrap_scores(self.image_totals, _compute_scores, seed=seed)


def _compute_scores(totals: ClassTotals) -> dict[str, Float64[Tensor, "*batch"]]:
    return {
        "mean_iou": totals_to_ious(totals).nanmean(dim=-1),
        "mean_accuracy": totals_to_accuracies(totals).nanmean(dim=-1),
        "pixel_accuracy": totals_to_overall_accuracy(totals),
    }
