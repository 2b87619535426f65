"""Evaluation sets as they are opened: cells of labelled images, and how predictions on them count."""

from dataclasses import dataclass

from c2fmae.data.scenes import Scenes
from c2fmae.data.suites.label_map import LabelMap, SetLabels, identity_label_map


@dataclass(frozen=True)
class Cell:
    """The images of one corruption at one severity, or all images of a set without corruptions."""

    corruption: str | None
    severity: int | None
    scenes: Scenes
    """Those of a corruption set are listed on first use: listing millions of files takes minutes."""
    expected_images: int | None
    """Number of images in the complete cell; None if unknown."""
    identity: str = ""
    """Changes when images of this cell are added or removed, but not with other cells: see `ShiftedSet.identity`."""

    @property
    def count_sentence(self) -> str | None:
        """How the number of images differs from the expected one; None if it does not. Lists the files on first use."""
        return describe_count_difference(len(self.scenes), self.expected_images)


def describe_count_difference(count: int, expected: int | None) -> str | None:
    """Return how a number of images differs from the expected one; None if it does not, or nothing is expected.

    >>> describe_count_difference(7123, 7500)
    '7,123 of 7,500 images: the set is incomplete'
    """
    if expected is None or count == expected:
        return None
    if count < expected:
        return f"{count:,} of {expected:,} images: the set is incomplete"
    return f"{count:,} images, more than the {expected:,} of the complete set"


@dataclass(frozen=True)
class ShiftedSet:
    """An evaluation set for classifiers that were trained on other data."""

    name: str
    suite: str
    """Name of the registered suite."""
    cells: tuple[Cell, ...]
    labels: SetLabels
    """The set's own classes, by the `label` of its scenes."""
    protocol_wnids: tuple[str, ...] | None
    """WordNet ids of the classes among which a model chooses, where the protocol restricts it to a list of its own
    (the 200 classes of ImageNet-A and -R); None otherwise."""
    is_cropped: bool
    """Whether images are stored as a model takes them, so that they are neither resized nor cropped."""
    creation_sentence: str | None
    """How the set was created with this package; None for a released set."""
    warnings: tuple[str, ...]
    """What is missing or unexpected, a sentence each; for single cells see `Cell.count_sentence`."""
    identity: str
    """Changes when images are added, removed or relabelled, as far as modification times of directories and tars show
    it, or keys and sampled images. Cached predictions depend on it. An image of a directory that is replaced under the
    same name may leave it unchanged."""
    label_map: LabelMap | None = None
    """Model classes that are correct for each label; None if each label accepts its own class only."""

    @property
    def accepted_classes(self) -> LabelMap:
        """Model classes that are correct for each label."""
        return identity_label_map(self.labels) if self.label_map is None else self.label_map
