"""Opened evaluation sets: cells of labelled images, and the model classes that are correct for each label."""

from dataclasses import dataclass

from c2fmae.data.scenes import Scenes
from c2fmae.data.suites.label_map import LabelMap, SetLabels, identity_label_map


@dataclass(frozen=True)
class Cell:
    """The images of one corruption at one severity, or all images of a set without corruptions."""

    corruption: str | None
    severity: int | None
    scenes: Scenes
    """Labelled images. Those of a corruption set are listed on first use: listing millions of files takes minutes."""
    expected_images: int | None
    """Number of images in the complete cell; None if unknown."""
    identity: str = ""
    """A digest that changes when images of this cell are added or removed; see `ShiftedSet.identity`."""

    @property
    def count_sentence(self) -> str | None:
        """A sentence if the number of images is not the expected one, or else None. Lists the files on first use."""
        return describe_count_difference(len(self.scenes), self.expected_images)


def describe_count_difference(count: int, expected: int | None) -> str | None:
    """Return a sentence if a number of images is not the expected one; None if it is, or if none is expected.

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
    """The classes of the set, by the `label` of its scenes."""
    protocol_wnids: tuple[str, ...] | None
    """WordNet ids of the classes among which a model chooses, where the protocol restricts it to a list of its own
    (the 200 classes of ImageNet-A and -R); None otherwise."""
    is_cropped: bool
    """Whether images are stored in the crop for evaluation, so that they are neither resized nor cropped."""
    creation_sentence: str | None
    """A sentence about how the set was created with this package; None for a released set."""
    warnings: tuple[str, ...]
    """A sentence for everything that is missing or unexpected; for single cells see `Cell.count_sentence`."""
    identity: str
    """A digest for cached predictions, which changes when images are added, removed or relabelled. It is computed from
    modification times of directories and tars, or from keys and sampled images, so replacing an image in a directory
    under the same name may leave it unchanged."""
    label_map: LabelMap | None = None
    """Model classes that are correct for each label; None if each label accepts its own class only."""

    @property
    def accepted_classes(self) -> LabelMap:
        """Model classes that are correct for each label."""
        return identity_label_map(self.labels) if self.label_map is None else self.label_map
