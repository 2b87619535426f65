"""From a classifier's answers on a set to numbers, each over all its photos at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from c2fmae.data.suites.cells import Cell, numbered
from c2fmae.data.suites.shifted_set import ShiftedSet
from c2fmae.eval.evaluation import Metric
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.robustness.class_matching import Matched
from c2fmae.eval.robustness.image_classifier import Entrant
from c2fmae.eval.robustness.prediction_store import Predictions
from c2fmae.eval.robustness.scores import calibration_error


@dataclass(frozen=True)
class Answered:
    """A cell and what a classifier answered on those of its photos whose class it knows."""

    cell: Cell
    predictions: Predictions
    truth: Int64[Tensor, " photo"]
    """By photo the index of the right logit; -1 where the classifier has none, or the set does not tell."""

    @classmethod
    def of(cls, cell: Cell, predictions: Predictions, column_of: Int64[Tensor, " label"]) -> "Answered":
        """Return a cell's answers beside what is right by a model's numbers."""
        labels = predictions.labels
        return cls(cell, predictions, torch.where(labels < 0, -1, column_of[labels.clamp(min=0)]))

    @cached_property
    def counts(self) -> Bool[Tensor, " photo"]:
        """Which photos count."""
        return self.truth >= 0

    @property
    def num_photos(self) -> int:
        """How many count."""
        return int(self.counts.sum())

    @property
    def num_left_out(self) -> int:
        """How many do not."""
        return len(self.truth) - self.num_photos

    @cached_property
    def is_right(self) -> Bool[Tensor, " photo"]:
        """Of those that count, which were answered rightly among the open classes."""
        return (self.predictions.predicted == self.truth)[self.counts]

    @cached_property
    def is_right_of_all(self) -> Bool[Tensor, " photo"]:
        """The same among all of the model's classes."""
        return (self.predictions.predicted_all == self.truth)[self.counts]

    @property
    def confidence(self) -> Float[Tensor, " photo"]:
        """Of those that count."""
        return self.predictions.confidence[self.counts]

    @property
    def error(self) -> float:
        """The share that was answered wrongly; NaN without photos."""
        return 1 - self.is_right.double().mean().item()


@dataclass(frozen=True)
class Answers:
    """All that is known of one classifier on one set."""

    entrant: Entrant
    of: ShiftedSet
    matched: Matched
    columns: tuple[int, ...]
    """The logits that were open."""
    cells: tuple[Answered, ...]
    clean: Answered | None = None
    """On clean photos, with the same logits open and the same classes alone counting."""

    @property
    def is_masked(self) -> bool:
        """Whether some of the model's classes were not open."""
        return len(self.columns) < len(self.entrant.labels)

    @property
    def num_resized(self) -> int:
        """How many photos that were to be taken as they are had to be brought to the model's size."""
        return sum(cell.predictions.num_resized for cell in self.cells)

    @property
    def chance(self) -> float:
        """What guessing gives."""
        return 1 / len(self.columns)


def is_grid(of: ShiftedSet) -> bool:
    """Return whether a set is of corruptions and severities."""
    return any(cell.corruption is not None for cell in of.cells)


def counted(photos: int, expected: int | None) -> str:
    """Say how many photos a number is over, beside how many there should be where that differs.

    >>> counted(7500, 7500), counted(7499, 7500)
    ('7,500', '7,499 of 7,500')
    """
    return f"{photos:,}" if expected in (None, photos) else f"{photos:,} of {expected:,}"


def accuracy_metric(name: str, is_right: Bool[Tensor, " photo"], note: str = "") -> Metric:
    """Return an accuracy in percent with Wilson's interval."""
    share = is_right.double().mean().item()
    return Metric(name, 100 * share, len(is_right), wilson(share, len(is_right), scale=100), note)


def remarks(answers: Answers, accuracy: float) -> str:
    """Say what has to be known beside a set's first number: what is left out, resized, or suspicious."""
    told = []
    photos, left_out = sum(cell.num_photos for cell in answers.cells), sum(cell.num_left_out for cell in answers.cells)
    expected = [cell.cell.expected for cell in answers.cells]
    whole = None if None in expected else sum(each or 0 for each in expected)
    if is_grid(answers.of) and whole not in (None, photos + left_out):  # of other sets their own notes say it
        told.append(f"{counted(photos + left_out, whole)} images in {numbered(len(expected), 'cell', 'cells')}")
    if answers.matched.missing:
        missing = answers.matched.missing
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        told.append(
            f"a subset: the model lacks {len(missing)} of the {answers.matched.num_asked} classes ({named}), whose "
            f"{numbered(left_out, 'photo is', 'photos are')} left out"
        )
    elif left_out:
        told.append(f"{numbered(left_out, 'photo without a class is', 'photos without a class are')} left out")
    if answers.num_resized:
        resized = numbered(answers.num_resized, "photo was", "photos were")
        told.append(f"resized: {resized} brought to {'×'.join(map(str, answers.entrant.size))}")
    told += answers.of.notes
    if accuracy < (3 if len(answers.columns) >= _MANY else 1) * answers.chance:
        told.append(f"hardly above chance, {100 * answers.chance:.2g} %: are classes, weights, mean and std right?")
    return "; ".join(told)


def plain_metrics(answers: Answers, name: str, own: str) -> list[Metric]:
    """Return the numbers of a set without corruptions; `own` is what its number is called where classes are masked."""
    is_right, confidence = (
        torch.cat([getattr(cell, what) for cell in answers.cells]) for what in ("is_right", "confidence")
    )
    first = f"{name}, {own}"
    metrics = [accuracy_metric(first, is_right, remarks(answers, is_right.double().mean().item()))]
    if own != TOP_1:
        every = torch.cat([cell.is_right_of_all for cell in answers.cells])
        metrics.append(accuracy_metric(f"{name}, all of the model's classes", every))
    metrics += clean_metrics(answers, name, metrics[0].value)
    error = 100 * calibration_error(confidence, is_right)
    return [*metrics, Metric(f"{name}, calibration error", error, len(is_right))]


TOP_1 = "top-1"

_MANY = 10  # classes; of fewer, three times chance is no little


def clean_metrics(answers: Answers, name: str, accuracy: float) -> list[Metric]:
    """Return the accuracy on clean photos of the same classes, asked in the same way, and how much less is left."""
    if answers.clean is None or not answers.clean.num_photos:
        return []
    clean = accuracy_metric(f"{name}, clean on the same classes", answers.clean.is_right)
    return [clean, Metric(f"{name}, drop", clean.value - accuracy, answers.clean.num_photos)]


def photo_numbers(cells: Sequence[Answered]) -> list[Int64[Tensor, " photo"]]:
    """Return for each cell the numbers of the photos that count; one of the same key has the same in all cells."""
    digests = [cell.predictions.photos[cell.counts] for cell in cells]
    numbers = torch.cat(digests).unique(return_inverse=True)[1]
    return list(numbers.split([len(each) for each in digests]))
