"""The official sets: what they are called, which classes they have, and how many photos."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from c2fmae.core.errors import unknown_name_error


@dataclass(frozen=True)
class OfficialSet:
    """What is known of a set before it is looked at."""

    display_name: str
    wnids: Callable[[], tuple[str, ...]]
    """The classes that its photos are of, by WordNet id, in the order of ImageNet's."""
    num_images: int
    """Photos; of ImageNet-C, in each cell."""
    images_per_class: int | None = None
    """Photos of each class, where that is the same for all."""


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1000 classes, in the order of the logits."""
    return _read_timm_synsets("imagenet")


@cache
def imagenet_a_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 200 classes of ImageNet-A."""
    return _read_timm_synsets("imagenet_a")


@cache
def imagenet_r_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 200 classes of ImageNet-R, which are others than those of ImageNet-A."""
    return _read_timm_synsets("imagenet_r")


def _read_timm_synsets(name: str) -> tuple[str, ...]:
    """Read one of timm's lists; its `ImageNetInfo` does not know those of the subsets."""
    return tuple((files("timm.data") / "_info" / f"{name}_synsets.txt").read_text(encoding="utf-8").split())


CUSTOM = "custom"
IMAGENET_C = "imagenet-c"
OFFICIAL_SETS = {
    "imagenet-val": OfficialSet("ImageNet's validation photos", imagenet_wnids, 50_000, images_per_class=50),
    "imagenet-a": OfficialSet("ImageNet-A", imagenet_a_wnids, 7_500),
    "imagenet-r": OfficialSet("ImageNet-R", imagenet_r_wnids, 30_000),
    "sketch": OfficialSet("ImageNet-Sketch", imagenet_wnids, 50_889),
    IMAGENET_C: OfficialSet("ImageNet-C", imagenet_wnids, 50_000, images_per_class=50),
}
SUITE_NAMES = (*OFFICIAL_SETS, CUSTOM)
SUBSET_SUITES = ("imagenet-a", "imagenet-r")
"""Sets that are answered with their own 200 classes alone."""
_SUITE_ALIASES = {
    "val": "imagenet-val",
    "a": "imagenet-a",
    "r": "imagenet-r",
    "imagenet-sketch": "sketch",
    "c": IMAGENET_C,
}


def resolve_suite(name: str) -> str:
    """Return the kind that a name or a short name means.

    >>> resolve_suite("a"), resolve_suite("sketch")
    ('imagenet-a', 'sketch')
    """
    kind = _SUITE_ALIASES.get(name, name)
    if kind not in SUITE_NAMES:
        raise unknown_name_error("kind of set", name, [*SUITE_NAMES, *_SUITE_ALIASES])
    return kind


def guess_suite(wnids: set[str]) -> str | None:
    """Return the official set whose classes these are, if they are those of one.

    >>> guess_suite(set(imagenet_r_wnids())), guess_suite({"n01440764", "cat"})
    ('imagenet-r', None)
    """
    fitting = [kind for kind in (*SUBSET_SUITES, "imagenet-val") if wnids <= set(OFFICIAL_SETS[kind].wnids())]
    return fitting[0] if wnids and fitting else None
