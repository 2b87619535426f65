"""From a classifier's answers on a set to numbers, each over all its photos at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from c2fmae.core.text import format_count
from c2fmae.data.suites import Cell, ShiftedSet
from c2fmae.eval.metrics import Metric, TagValue, build_accuracy_metric
from c2fmae.eval.robustness.class_matching import ClassMatching
from c2fmae.eval.robustness.image_classifier import ImageClassifier
from c2fmae.eval.robustness.prediction_store import StoredPredictions
from c2fmae.eval.robustness.scores import compute_calibration_error


@dataclass(frozen=True)
class CellPredictions:
    """A cell, and a classifier's predictions on those of its images that count."""

    cell: Cell
    stored: StoredPredictions
    accepted: Bool[Tensor, "label column"]
    """Which logits are correct for each label."""

    @cached_property
    def is_counted(self) -> Bool[Tensor, " photo"]:
        """Which images count: those with a label of which the classifier has a class."""
        labels = self.stored.labels
        return (labels >= 0) & self.accepted.any(dim=1)[labels.clamp(min=0)]

    @property
    def counted_labels(self) -> Int64[Tensor, " photo"]:
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
    def is_correct(self) -> Bool[Tensor, " photo"]:
        """Which of the images that count are classified correctly among the open classes."""
        return self.accepted[self.counted_labels, self.stored.predicted[self.is_counted]]

    @cached_property
    def is_correct_among_all(self) -> Bool[Tensor, " photo"]:
        """Which of them are classified correctly among all of the model's classes."""
        return self.accepted[self.counted_labels, self.stored.predicted_all[self.is_counted]]

    @property
    def confidence(self) -> Float[Tensor, " photo"]:
        """Of those that count."""
        return self.stored.confidence[self.is_counted]

    @property
    def error(self) -> float:
        """The share that was answered wrongly; NaN without photos."""
        return 1 - self.is_correct.double().mean().item()


@dataclass(frozen=True)
class SetPredictions:
    """All that is known of one classifier on one set."""

    classifier: ImageClassifier
    shifted_set: ShiftedSet
    class_matching: ClassMatching
    columns: tuple[int, ...]
    """The logits that were open."""
    cells: tuple[CellPredictions, ...]
    clean: CellPredictions | None = None
    """On clean photos, with the same logits open and the same classes alone counting."""

    @property
    def is_restricted(self) -> bool:
        """Whether some of the model's classes were not open."""
        return len(self.columns) < len(self.classifier.labels)

    @property
    def num_resized(self) -> int:
        """How many photos that were to be taken as they are had to be brought to the model's size."""
        return sum(cell.stored.num_resized for cell in self.cells)

    @property
    def chance_accuracy(self) -> float:
        """What guessing gives."""
        return 1 / len(self.columns)


def is_corruption_grid(shifted_set: ShiftedSet) -> bool:
    """Return whether a set is of corruptions and severities."""
    return any(cell.corruption is not None for cell in shifted_set.cells)


def format_image_count(num_images: int, expected: int | None) -> str:
    """Say how many photos a number is over, beside how many there should be where that differs.

    >>> format_image_count(7500, 7500), format_image_count(7499, 7500)
    ('7,500', '7,499 of 7,500')
    """
    return f"{num_images:,}" if expected in (None, num_images) else f"{num_images:,} of {expected:,}"


def measure_accuracy(
    key: str, is_correct: Bool[Tensor, " photo"], tags: Mapping[str, TagValue], notes: tuple[str, ...] = ()
) -> Metric:
    """Return an accuracy in percent with Wilson's interval."""
    return build_accuracy_metric(key, is_correct.double().mean().item(), len(is_correct), tags=tags, notes=notes)


def describe_caveats(set_predictions: SetPredictions, accuracy: float) -> tuple[str, ...]:
    """Say what has to be known beside a set's first number: what is left out, resized, or suspicious."""
    caveats: list[str] = []
    num_images, num_excluded = (
        sum(cell.num_images for cell in set_predictions.cells),
        sum(cell.num_excluded for cell in set_predictions.cells),
    )
    expected = [cell.cell.expected_images for cell in set_predictions.cells]
    total_expected = None if None in expected else sum(each or 0 for each in expected)
    if is_corruption_grid(set_predictions.shifted_set) and total_expected not in (
        None,
        num_images + num_excluded,
    ):  # of other sets their own notes say it
        caveats.append(
            f"{format_image_count(num_images + num_excluded, total_expected)} images in "
            f"{format_count(len(expected), 'cell', 'cells')}"
        )
    if set_predictions.class_matching.missing_names:
        missing_names = set_predictions.class_matching.missing_names
        listed_names = ", ".join(missing_names[:3]) + (", …" if len(missing_names) > 3 else "")
        caveats.append(
            f"a subset: the model lacks {len(missing_names)} of the {set_predictions.class_matching.num_requested} "
            f"classes ({listed_names}), whose "
            f"{format_count(num_excluded, 'photo is', 'photos are')} left out"
        )
    elif num_excluded:
        caveats.append(
            f"{format_count(num_excluded, 'photo without a class is', 'photos without a class are')} left out"
        )
    if set_predictions.num_resized:
        num_resized_text = format_count(set_predictions.num_resized, "photo was", "photos were")
        caveats.append(
            f"resized: {num_resized_text} brought to {'×'.join(map(str, set_predictions.classifier.image_size))}"
        )
    caveats += set_predictions.shifted_set.warnings
    if accuracy < (3 if len(set_predictions.columns) >= _MANY_CLASSES else 1) * set_predictions.chance_accuracy:
        caveats.append(
            f"hardly above chance, {100 * set_predictions.chance_accuracy:.2g} %: are classes, weights, mean and std "
            "right?"
        )
    return tuple(caveats)


def compute_accuracy_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], open_classes: str
) -> list[Metric]:
    """Return the metrics of a set without corruptions; `open_classes` names those among which the model chooses."""
    is_correct, confidence = (
        torch.cat([getattr(cell, what) for cell in set_predictions.cells]) for what in ("is_correct", "confidence")
    )
    caveats = describe_caveats(set_predictions, is_correct.double().mean().item())
    if open_classes == ALL_CLASSES:
        metrics = [measure_accuracy("top1", is_correct, tags, caveats)]
    else:
        is_correct_among_all = torch.cat([cell.is_correct_among_all for cell in set_predictions.cells])
        metrics = [
            measure_accuracy("top1", is_correct, {**tags, "classes": open_classes}, caveats),
            measure_accuracy("top1", is_correct_among_all, {**tags, "classes": ALL_CLASSES}),
        ]
    metrics += compute_clean_metrics(set_predictions, tags, metrics[0].value)
    error = 100 * compute_calibration_error(confidence, is_correct)
    return [*metrics, Metric("calibration_error", error, len(is_correct), tags=tags)]


ALL_CLASSES = "all classes"

_MANY_CLASSES = 10  # with fewer classes, three times chance is a good accuracy


def compute_clean_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], accuracy: float
) -> list[Metric]:
    """Return the accuracy on clean images of the same classes with the same logits open, and the drop from it."""
    clean = set_predictions.clean
    if clean is None or not clean.num_images:
        return []
    clean_metric = measure_accuracy("clean_top1", clean.is_correct, tags)
    return [clean_metric, Metric("accuracy_drop", clean_metric.value - accuracy, clean.num_images, tags=tags)]


def index_images(cells: Sequence[CellPredictions]) -> list[Int64[Tensor, " photo"]]:
    """Return for each cell the numbers of the photos that count; one of the same key has the same in all cells."""
    digests = [cell.stored.image_digests[cell.is_counted] for cell in cells]
    image_ids = torch.cat(digests).unique(return_inverse=True)[1]
    return list(image_ids.split([len(each) for each in digests]))
