"""The official sets: what they are called, which classes they have, and how many photos."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from c2fmae.core.errors import unknown_name


@dataclass(frozen=True)
class Official:
    """What is known of a set before it is looked at."""

    title: str
    wnids: Callable[[], tuple[str, ...]]
    """The classes that its photos are of, by WordNet id, in the order of ImageNet's."""
    images: int
    """Photos; of ImageNet-C, in each cell."""
    per_class: int | None = None
    """Photos of each class, where that is the same for all."""


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1000 classes, in the order of the logits."""
    return _listed("imagenet")


@cache
def imagenet_a_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 200 classes of ImageNet-A."""
    return _listed("imagenet_a")


@cache
def imagenet_r_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 200 classes of ImageNet-R, which are others than those of ImageNet-A."""
    return _listed("imagenet_r")


def _listed(name: str) -> tuple[str, ...]:
    """Read one of timm's lists; its `ImageNetInfo` does not know those of the subsets."""
    return tuple((files("timm.data") / "_info" / f"{name}_synsets.txt").read_text(encoding="utf-8").split())


CUSTOM = "custom"
IMAGENET_C = "imagenet-c"
OFFICIAL = {
    "imagenet-val": Official("ImageNet's validation photos", imagenet_wnids, 50_000, per_class=50),
    "imagenet-a": Official("ImageNet-A", imagenet_a_wnids, 7_500),
    "imagenet-r": Official("ImageNet-R", imagenet_r_wnids, 30_000),
    "sketch": Official("ImageNet-Sketch", imagenet_wnids, 50_889),
    IMAGENET_C: Official("ImageNet-C", imagenet_wnids, 50_000, per_class=50),
}
KINDS = (*OFFICIAL, CUSTOM)
PROTOCOLS = ("imagenet-a", "imagenet-r")
"""Sets that are answered with their own 200 classes alone."""
_SHORT = {"val": "imagenet-val", "a": "imagenet-a", "r": "imagenet-r", "imagenet-sketch": "sketch", "c": IMAGENET_C}


def kind_named(name: str) -> str:
    """Return the kind that a name or a short name means.

    >>> kind_named("a"), kind_named("sketch")
    ('imagenet-a', 'sketch')
    """
    kind = _SHORT.get(name, name)
    if kind not in KINDS:
        raise unknown_name("kind of set", name, [*KINDS, *_SHORT])
    return kind


def looks_like(wnids: set[str]) -> str | None:
    """Return the official set whose classes these are, if they are those of one.

    >>> looks_like(set(imagenet_r_wnids())), looks_like({"n01440764", "cat"})
    ('imagenet-r', None)
    """
    fitting = [kind for kind in (*PROTOCOLS, "imagenet-val") if wnids <= set(OFFICIAL[kind].wnids())]
    return fitting[0] if wnids and fitting else None
