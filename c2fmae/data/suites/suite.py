"""The registry of suites: kinds of evaluation sets, by name.

A suite defines the classes, number of images and file layout of a set, and the model classes that count as correct.
Another package adds one by registering it:

    SUITES.register("birds", "Birds: photographs of 20 families.")(
        Suite(name="birds", title="Birds", layout=LabelledImages(), num_images=2_000, label_map=families_to_classes)
    )
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from c2fmae.core.errors import unknown_name_error
from c2fmae.core.labels import LabelInfo
from c2fmae.core.registry import Registry
from c2fmae.data.class_dirs import dir_name_to_label
from c2fmae.data.info import DatasetInfo
from c2fmae.data.suites.label_map import LabelMap, SetLabels, identity_label_map
from c2fmae.data.suites.shifted_set import ShiftedSet

CUSTOM = "custom"
"""The suite of sets that no registered suite describes: any classes, any number of images."""


@dataclass(frozen=True)
class SuiteCheckReport:
    """Result of checking a set against its suite."""

    findings: tuple[str, ...]
    """A sentence for everything that is missing or unexpected."""
    summary: str


@runtime_checkable
class Layout(Protocol):
    """The file layout of a set. `source` is a directory, a tar, or anything that `open_scenes` takes."""

    def open(self, suite: "Suite", source: str | Path) -> ShiftedSet:
        """Open a set, with minor problems in `warnings`. Raise a `UserError` if the set cannot be evaluated.

        Every scene's `label` is an index into `labels` and the label map, or None for an image that is excluded.
        """

    def check(self, suite: "Suite", source: str | Path) -> SuiteCheckReport:
        """Compare a set with the complete one by names, counts and a sample of its images."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A kind of evaluation set."""

    name: str
    """Registered name."""
    title: str
    """Name for messages and reports."""
    layout: Layout
    wnids: Callable[[], tuple[str, ...]] | None = None
    """WordNet ids of the classes, in the order of ImageNet's; None for a suite whose sets may have any classes."""
    num_images: int | None = None
    """Number of images of the complete set, in each cell; None if it is not fixed."""
    images_per_class: int | None = None
    """Number of images of each class, if all have the same."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images of a released set that is not resized or cropped for evaluation, or else None."""
    is_restricted: bool = False
    """Whether a model chooses among the set's classes only, as on ImageNet-A and -R, or among all of its own."""
    name_to_label: Callable[[str], LabelInfo] = dir_name_to_label
    """Function that returns the class of a class directory's name."""
    label_map: Callable[[SetLabels], LabelMap] = identity_label_map
    """Function that returns the model classes that are correct for each label of a set. A layout in which images have
    several labels sets `ShiftedSet.label_map` itself."""
    aliases: tuple[str, ...] = ()
    """Short names that `resolve_suite` accepts."""
    class_dirs_hint: str = "Move the images of each class into a directory of its own"
    """Advice for a source without class directories."""

    @property
    def protocol_wnids(self) -> tuple[str, ...] | None:
        """Classes among which a model chooses, where they are fixed by the suite."""
        return self.wnids() if self.is_restricted and self.wnids else None


SUITES: Registry[Suite] = Registry("suite")


def resolve_suite(name: str) -> str:
    """Return the registered name of a suite that is given by its name or an alias.

    >>> resolve_suite("a"), resolve_suite("sketch")
    ('imagenet-a', 'sketch')
    """
    suite_by_alias = {alias: suite for suite in SUITES for alias in SUITES.get(suite).aliases}
    resolved = suite_by_alias.get(name, name)
    if resolved not in SUITES:
        raise unknown_name_error("suite", name, [*SUITES, *suite_by_alias])
    return resolved


def open_shifted_set(suite: str, source: str | Path, name: str | None = None) -> ShiftedSet:
    """Open a set from a directory or a tar; `name` replaces the one that the suite or the data has."""
    opened = SUITES.get(resolve_suite(suite)).layout.open(SUITES.get(resolve_suite(suite)), source)
    return opened if name is None else replace(opened, name=name)


def check_suite(suite: str, source: str | Path) -> SuiteCheckReport:
    """Compare a set with the complete one of its suite by names, counts and a sample of its images."""
    entry = SUITES.get(resolve_suite(suite))
    return entry.layout.check(entry, source)


def choose_set_name(suite: Suite, source: str | Path, info: DatasetInfo) -> str:
    """Return a set's name: that of its suite, or for the custom suite that of the data, its directory or its tar."""
    return suite.name if suite.name != CUSTOM else info.name or Path(source).name.removesuffix(".tar")


def find_suites_with_classes(wnids: set[str]) -> tuple[str, ...]:
    """Return the suites with the fewest classes among those that contain all given classes; empty without classes.

    >>> find_suites_with_classes({"n01443537"}), find_suites_with_classes({"n01440764", "cat"})
    (('imagenet-r',), ())
    """
    class_lists = {name: wnids_of() for name in SUITES if (wnids_of := SUITES.get(name).wnids)}
    counts = {name: len(classes) for name, classes in class_lists.items() if wnids and wnids <= set(classes)}
    return tuple(name for name, count in counts.items() if count == min(counts.values()))
