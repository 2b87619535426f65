"""Metrics of a classifier's predictions on a set, each computed over all images of the set together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from c2fmae.core.text import format_count
from c2fmae.data.suites import Cell, ShiftedSet
from c2fmae.eval.metrics import Metric, TagValue, build_accuracy_metric, find_metric
from c2fmae.eval.robustness.class_matching import ClassMatching
from c2fmae.eval.robustness.effective_robustness import AccuracyLine, fit_accuracy_line
from c2fmae.eval.robustness.image_classifier import ImageClassifier
from c2fmae.eval.robustness.prediction_store import StoredPredictions
from c2fmae.eval.robustness.scores import compute_calibration_error

ALL_CLASSES = "all classes"
_MANY_CLASSES = 10  # with fewer classes, three times chance is a good accuracy


@dataclass(frozen=True)
class CellPredictions:
    """A cell and a classifier's predictions on its images.

    An image counts if it has a label of which the classifier has a class; metrics are over these images only.
    """

    cell: Cell
    stored: StoredPredictions
    accepted: Bool[Tensor, "label column"]
    """Whether each logit is correct for each label."""

    @cached_property
    def is_counted(self) -> Bool[Tensor, " image"]:
        """Whether each image counts."""
        labels = self.stored.labels
        return (labels >= 0) & self.accepted.any(dim=1)[labels.clamp(min=0)]

    @property
    def counted_labels(self) -> Int64[Tensor, " image"]:
        """The labels of the images that count."""
        return self.stored.labels[self.is_counted]

    @property
    def num_images(self) -> int:
        """The number of images that count."""
        return int(self.is_counted.sum())

    @property
    def num_excluded(self) -> int:
        """The number of images that do not count."""
        return len(self.is_counted) - self.num_images

    @cached_property
    def is_correct(self) -> Bool[Tensor, " image"]:
        """Whether each image that counts is classified correctly among the open classes."""
        return self.accepted[self.counted_labels, self.stored.predicted[self.is_counted]]

    @cached_property
    def is_correct_among_all(self) -> Bool[Tensor, " image"]:
        """Whether each image that counts is classified correctly among all of the model's classes."""
        return self.accepted[self.counted_labels, self.stored.predicted_all[self.is_counted]]

    @property
    def confidence(self) -> Float[Tensor, " image"]:
        """The confidence of each image that counts."""
        return self.stored.confidence[self.is_counted]

    @property
    def error(self) -> float:
        """The fraction of wrong predictions; NaN if no image counts."""
        return 1 - self.is_correct.double().mean().item()


@dataclass(frozen=True)
class SetPredictions:
    """The predictions of one classifier on one set."""

    classifier: ImageClassifier
    shifted_set: ShiftedSet
    class_matching: ClassMatching
    columns: tuple[int, ...]
    """The open logits: those that the classifier chooses from."""
    cells: tuple[CellPredictions, ...]
    clean: CellPredictions | None = None
    """Predictions on clean images of the same classes, with the same logits open."""
    clean_suite: str | None = None
    """The suite of the clean images."""

    @property
    def is_restricted(self) -> bool:
        """Whether only some of the model's logits are open."""
        return len(self.columns) < len(self.classifier.labels)

    @property
    def num_resized(self) -> int:
        """The number of uncropped images that were resized, since their size is not the model's."""
        return sum(cell.stored.num_resized for cell in self.cells)

    @property
    def chance_accuracy(self) -> float:
        """The expected accuracy of random predictions."""
        return 1 / len(self.columns)


def is_corruption_grid(shifted_set: ShiftedSet) -> bool:
    """Return whether a set consists of corruptions and severities."""
    return any(cell.corruption is not None for cell in shifted_set.cells)


def make_accuracy_metric(
    key: str, is_correct: Bool[Tensor, " image"], tags: Mapping[str, TagValue], notes: tuple[str, ...] = ()
) -> Metric:
    """Return the metric of an accuracy, in percent with Wilson's interval."""
    return build_accuracy_metric(key, is_correct.double().mean().item(), len(is_correct), tags=tags, notes=notes)


def describe_caveats(set_predictions: SetPredictions, accuracy: float) -> tuple[str, ...]:
    """Return notes for the first metric of a set: images left out or resized, warnings, an accuracy close to chance."""
    caveats: list[str] = []
    cells, matching = set_predictions.cells, set_predictions.class_matching
    num_excluded = sum(cell.num_excluded for cell in cells)
    num_images = sum(cell.num_images for cell in cells) + num_excluded
    expected = [cell.cell.expected_images for cell in cells if cell.cell.expected_images is not None]
    if (
        is_corruption_grid(set_predictions.shifted_set)  # other sets have a warning of their own
        and len(expected) == len(cells)
        and sum(expected) != num_images
    ):
        caveats.append(f"{num_images:,} of {sum(expected):,} images in {format_count(len(cells), 'cell', 'cells')}")
    if matching.missing_names:
        names = ", ".join(matching.missing_names[:3]) + (", …" if len(matching.missing_names) > 3 else "")
        caveats.append(
            f"a subset: the model lacks {len(matching.missing_names)} of the {matching.num_requested} classes "
            f"({names}), whose {format_count(num_excluded, 'image is', 'images are')} left out"
        )
    elif num_excluded:
        caveats.append(
            f"{format_count(num_excluded, 'image without a class is', 'images without a class are')} left out"
        )
    if set_predictions.num_resized:
        count = format_count(set_predictions.num_resized, "image was", "images were")
        size = "×".join(map(str, set_predictions.classifier.image_size))
        caveats.append(f"resized: {count} resized to {size}")
    caveats += set_predictions.shifted_set.warnings
    chance = set_predictions.chance_accuracy
    if accuracy < (3 if len(set_predictions.columns) >= _MANY_CLASSES else 1) * chance:
        caveats.append(f"close to chance ({100 * chance:.2g} %). Check classes, weights, mean and std")
    return tuple(caveats)


def compute_accuracy_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], open_classes: str
) -> list[Metric]:
    """Return the metrics of a set without corruptions; `open_classes` is the name of the open logits in tables."""
    is_correct = torch.cat([cell.is_correct for cell in set_predictions.cells])
    confidence = torch.cat([cell.confidence for cell in set_predictions.cells])
    caveats = describe_caveats(set_predictions, is_correct.double().mean().item())
    if open_classes == ALL_CLASSES:
        metrics = [make_accuracy_metric("top1", is_correct, tags, caveats)]
    else:
        is_correct_among_all = torch.cat([cell.is_correct_among_all for cell in set_predictions.cells])
        metrics = [
            make_accuracy_metric("top1", is_correct, {**tags, "classes": open_classes}, caveats),
            make_accuracy_metric("top1", is_correct_among_all, {**tags, "classes": ALL_CLASSES}),
        ]
    metrics += compute_clean_metrics(set_predictions, tags, metrics[0].value)
    metrics += _compute_effective_robustness(metrics, set_predictions, tags)
    error = 100 * compute_calibration_error(confidence, is_correct)
    return [*metrics, Metric("calibration_error", error, len(is_correct), tags=tags)]


def compute_clean_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], accuracy: float
) -> list[Metric]:
    """Return the accuracy on clean images of the same classes with the same logits open, and the drop from it."""
    clean = set_predictions.clean
    if clean is None or not clean.num_images:
        return []
    clean_metric = make_accuracy_metric("clean_top1", clean.is_correct, tags)
    return [clean_metric, Metric("accuracy_drop", clean_metric.value - accuracy, clean.num_images, tags=tags)]


def find_accuracy_line(set_predictions: SetPredictions) -> AccuracyLine | None:
    """Return the line of the reference models, if the accuracies are by its protocol: complete released sets."""
    clean = set_predictions.clean
    is_comparable = (
        clean is not None
        and all(cell.cell.count_sentence is None for cell in (*set_predictions.cells, clean))
        and set_predictions.clean_suite == "imagenet-val"
        and set_predictions.shifted_set.creation_sentence is None
        and not set_predictions.class_matching.missing_names
    )
    return fit_accuracy_line(set_predictions.shifted_set.suite) if is_comparable else None


def _compute_effective_robustness(
    metrics: Sequence[Metric], set_predictions: SetPredictions, tags: Mapping[str, TagValue]
) -> list[Metric]:
    """Return the distance of an accuracy from the line of models with the same accuracy on clean images, in points."""
    line, clean = find_accuracy_line(set_predictions), find_metric(metrics, "clean_top1", **tags)
    if line is None or clean is None:
        return []
    images = " on images of matched frequency" if set_predictions.shifted_set.suite == "imagenet-v2" else ""
    predicted, models = line.predict(clean.value), f"{line.num_models} models of timm"
    note = (
        f"the line of {models}{images} is at {predicted:.1f} %, and they differ from it by {line.spread:.1f} points "
        "(standard deviation)"
    )
    value = metrics[0].value - predicted
    return [Metric("effective_robustness", value, metrics[0].count, tags=tags, notes=(note,))]
