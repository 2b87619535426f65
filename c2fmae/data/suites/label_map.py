"""Label maps: the classes of a model that count as correct for each label of a set.

Classes are matched by WordNet id, or by name where neither side has one; never by position.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from c2fmae.core.labels import LabelInfo

SetLabels = tuple[LabelInfo | None, ...]
"""The classes of a set by label; None for a label without a class."""

LabelMap = tuple[tuple[LabelInfo, ...], ...]
"""The model classes that are correct, by label of a set. An empty tuple excludes the label's images.

- One class per label: `identity_label_map`.
- Many to one: a label such as "dog" accepts every breed among a model's classes.
- Several labels per image: a scene has one `label`, so each distinct combination of classes is a label of its own that
  accepts all of them. ImageNet-ReaL with 50,000 images has a few thousand combinations.
"""


def identity_label_map(labels: SetLabels) -> LabelMap:
    """Return the map in which each label accepts its own class only.

    >>> identity_label_map((LabelInfo(name="cat"), None))
    ((LabelInfo(name='cat', wnid=None),), ())
    """
    return tuple((label,) if label else () for label in labels)


def class_key(label: LabelInfo) -> tuple[str, str]:
    """Return the identity of a class: equal keys mean the same class."""
    return ("wnid", label.wnid) if label.wnid else ("name", label.name)


def find_accepted_columns(
    label_map: LabelMap, model_labels: Sequence[LabelInfo | None]
) -> Bool[Tensor, "label column"]:
    """Return a table that is true where a logit of a model is correct for a label of a set.

    With `labels` and `predicted` columns of images, `accepted[labels, predicted]` is true for those that are classified
    correctly. An image counts if its label is at least 0 and `accepted[label].any()`: where a model has none of the
    accepted classes, the image is excluded, not wrong.

    >>> cat, fox, wolf = (LabelInfo(name=name) for name in ("cat", "fox", "wolf"))
    >>> label_map = ((cat,), (fox, wolf), (LabelInfo(name="owl"),))
    >>> find_accepted_columns(label_map, (wolf, cat, None, fox)).int().tolist()
    [[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for column, label in enumerate(model_labels):
        if label:
            columns.setdefault(class_key(label), []).append(column)
    accepted = torch.zeros(len(label_map), len(model_labels), dtype=torch.bool)
    for row, classes in enumerate(label_map):
        accepted[row, [column for label in classes for column in columns.get(class_key(label), [])]] = True
    return accepted
