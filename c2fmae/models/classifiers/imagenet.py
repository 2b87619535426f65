"""The thousand classes of ImageNet-1k, in the usual order of logits."""

from collections.abc import Sequence
from functools import cache

from timm.data.imagenet_info import ImageNetInfo

from c2fmae.core.labels import LabelInfo

_MIN_NAME_OVERLAP = 0.95  # fraction of equal names; published lists differ in a few


@cache
def imagenet_labels() -> tuple[LabelInfo, ...]:
    """Return the classes of ImageNet-1k by logit, with their WordNet ids.

    >>> imagenet_labels()[1].wnid, imagenet_labels()[1].name
    ('n01443537', 'goldfish, Carassius auratus')
    """
    names = ImageNetInfo().label_descriptions(as_dict=True)
    assert isinstance(names, dict)
    return tuple(LabelInfo(name=name, wnid=wnid) for wnid, name in names.items())


def are_imagenet_labels(labels: Sequence[LabelInfo | None]) -> bool:
    """Return whether labels without WordNet ids are those of ImageNet-1k in its order, by their first names."""
    imagenet = imagenet_labels()
    if len(labels) != len(imagenet) or any(label and label.wnid for label in labels):
        return False
    pairs = zip(labels, imagenet, strict=True)
    return sum(
        bool(label) and _first_name(label) == _first_name(expected) for label, expected in pairs
    ) >= _MIN_NAME_OVERLAP * len(imagenet)


def _first_name(label: LabelInfo | None) -> str:
    return label.name.partition(",")[0].strip().lower() if label else ""
