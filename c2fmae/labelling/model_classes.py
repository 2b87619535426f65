"""From the names of a model's classes to the ids of a label space."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.data.label_spaces import LabelSpace

_UNNAMED = re.compile(r"LABEL_\d+")  # which transformers writes for a class without a name
_MAX_LISTED = 10


def list_class_names(id2label: Mapping[int, str], origin: Any) -> list[str]:
    """Return the names of the outputs of a model."""
    if sorted(id2label) != list(range(len(id2label))):
        raise UserError(
            f"{origin}: the keys of id2label in config.json are not the outputs of the model, 0 to {len(id2label) - 1}."
            " Use the config.json that belongs to the weights"
        )
    return [id2label[index] for index in range(len(id2label))]


def match_classes(
    names: Sequence[str], space: LabelSpace, *, origin: Any, is_in_order: bool, needs_all: bool
) -> tuple[int, ...]:
    """Return the id in the label space of each class of a model, or raise a `UserError` that lists the problems.

    Names are compared without case, separators and the endings `-merged` and `-stuff`. `is_in_order` states that
    classes without names (`LABEL_0`) are those of the space in its order. With `needs_all`, every class of the space
    must have one of the model.
    """
    if is_unnamed(names):
        return _match_unnamed(len(names), space, origin, is_in_order=is_in_order)
    ids = {normalise_class_name(entry.name): index for index, entry in enumerate(space.classes)}
    if unmatched := [name for name in names if normalise_class_name(name) not in ids]:
        raise UserError(
            f"{origin}: {len(unmatched)} of its {len(names)} classes are not in {space.name}: {_list(unmatched)}. Use a"
            f" model with the classes of {space.name}"
        )
    matched = tuple(ids[normalise_class_name(name)] for name in names)
    if repeated := sorted({name for name, id_ in zip(names, matched, strict=True) if matched.count(id_) > 1}):
        raise UserError(
            f"{origin}: several of its classes are the same class of {space.name}: {_list(repeated)}. Correct id2label"
            " in config.json"
        )
    missing = [entry.name for index, entry in enumerate(space.classes) if index not in matched]
    if needs_all and missing:
        raise UserError(
            f"{origin}: has {len(names)} classes, without {len(missing)} of {space.name}: {_list(missing)}. Use it for"
            " --instances only, or a model with all classes"
        )
    return matched


def is_unnamed(names: Iterable[str]) -> bool:
    """Return whether no class of a model has a name."""
    return all(_UNNAMED.fullmatch(name) for name in names)


def normalise_class_name(name: str) -> str:
    """Return what equal classes of differently written names have in common.

    >>> normalise_class_name("sky-other-merged"), normalise_class_name("Sky other")
    ('skyother', 'skyother')
    """
    text = re.sub(r"[\s_-]+", "-", name.strip().lower())
    return text.removesuffix("-merged").removesuffix("-stuff").replace("-", "")


def _match_unnamed(num_classes: int, space: LabelSpace, origin: Any, *, is_in_order: bool) -> tuple[int, ...]:
    if not is_in_order:
        raise UserError(
            f"{origin}: config.json has no names of classes (LABEL_0, …). If they are the {len(space.classes)} classes"
            f" of {space.name} in its order, add --set semantics.space={space.name} (or instances.space)"
        )
    if num_classes != len(space.classes):
        raise UserError(
            f"{origin}: has {num_classes} classes without names (expected the {len(space.classes)} classes of"
            f" {space.name}). Use a config.json with id2label"
        )
    return tuple(range(num_classes))


def _list(names: Sequence[str]) -> str:
    more = f", … ({len(names) - _MAX_LISTED} more)" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
