"""Which of a model's classes are those of a set: by WordNet id, or by name where neither has one; never by place."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo

LabelSequence = Sequence[LabelInfo | None]


@dataclass(frozen=True)
class ClassMatching:
    """A set's classes in a model's numbers."""

    label_to_column: Int64[Tensor, " label"]
    """By the set's label the index of the logit; -1 where the model lacks the class."""
    columns: tuple[int, ...]
    """The logits of the classes that are asked for, in rising order."""
    num_requested: int
    """How many classes are asked for, those that the model lacks among them."""
    missing_names: tuple[str, ...]
    """Names of these that the model lacks."""


def match_classes(
    set_labels: LabelSequence,
    protocol_wnids: Sequence[str] | None,
    model_labels: LabelSequence,
    *,
    set_name: str,
    model_name: str,
) -> ClassMatching:
    """Return where a model has a set's classes.

    `protocol_wnids` lists the classes of the protocol where images of some of them may be missing (the 200 of
    ImageNet-A). A model that has none of the classes is an error.
    """
    column_by_key = {key: column for column, each in enumerate(model_labels) if each and (key := _class_key(each))}
    label_to_column = [column_by_key.get(_class_key(each), -1) if each else -1 for each in set_labels]
    if protocol_wnids is None:
        requested = {_class_key(each): each.name for each in set_labels if each}
    else:
        names = {each.wnid: each.name for each in set_labels if each}
        requested = {("wnid", wnid): names.get(wnid, wnid) for wnid in protocol_wnids}
    model_keys = {_class_key(each) for each in model_labels if each}
    duplicates = [
        key
        for key, count in Counter(_class_key(each) for each in model_labels if each).items()
        if count > 1 and key in requested
    ]
    if duplicates:
        raise UserError(
            f"{model_name}: has {duplicates[0][1]!r} twice among its classes, so which of the two is meant in "
            f"{set_name} is "
            "not to be known. Give its classes WordNet ids"
        )
    if not model_keys & requested.keys():
        raise UserError(
            f"{model_name}: has none of the classes of {set_name}: {_explain_no_match(requested, model_keys)}"
        )
    missing_names = tuple(name for key, name in requested.items() if key not in column_by_key)
    columns = tuple(sorted(column_by_key[key] for key in requested if key in column_by_key))
    return ClassMatching(torch.tensor(label_to_column), columns, len(requested), missing_names)


def _class_key(label: LabelInfo) -> tuple[str, str]:
    return ("wnid", label.wnid) if label.wnid else ("name", label.name)


def _explain_no_match(requested: Iterable[tuple[str, str]], model_keys: Iterable[tuple[str, str]]) -> str:
    requested_sorted, model_sorted = (sorted(each) for each in (requested, model_keys))
    kinds = [{kind for kind, _ in each} for each in (requested_sorted, model_sorted)]
    if kinds == [{"wnid"}, {"name"}] or kinds == [{"name"}, {"wnid"}]:
        owner = "the model's classes" if kinds[1] == {"name"} else "the set's classes"
        return f"{owner} have names but no WordNet ids. Give them some, as `wnid` in the labels of dataset.json"
    return f"it knows {model_sorted[0][1]!r} and others, the set {requested_sorted[0][1]!r} and others"
