"""Which of a model's classes are those of a set: by WordNet id, or by name where neither has one; never by place."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo

Labels = Sequence[LabelInfo | None]


@dataclass(frozen=True)
class Matched:
    """A set's classes in a model's numbers."""

    column_of: Int64[Tensor, " label"]
    """By the set's label the index of the logit; -1 where the model lacks the class."""
    columns: tuple[int, ...]
    """The logits of the classes that are asked for, in rising order."""
    num_asked: int
    """How many classes are asked for, those that the model lacks among them."""
    missing: tuple[str, ...]
    """Names of these that the model lacks."""


def match(labels: Labels, wnids: Sequence[str] | None, model: Labels, *, set_name: str, model_name: str) -> Matched:
    """Return where a model has a set's classes.

    `labels` are the set's; `wnids` are what is asked for where that is more than the classes of which there are photos,
    as of the 200 of ImageNet-A. A model that has none of them is refused.
    """
    places = {key: column for column, each in enumerate(model) if each and (key := _key(each))}
    column_of = [places.get(_key(each), -1) if each else -1 for each in labels]
    if wnids is None:
        asked = {_key(each): each.name for each in labels if each}
    else:
        names = {each.wnid: each.name for each in labels if each}
        asked = {("wnid", wnid): names.get(wnid, wnid) for wnid in wnids}
    keys = {_key(each) for each in model if each}
    twice = [key for key, count in Counter(_key(each) for each in model if each).items() if count > 1 and key in asked]
    if twice:
        raise UserError(
            f"{model_name}: has {twice[0][1]!r} twice among its classes, so which of the two is meant in {set_name} is "
            "not to be known. Give its classes WordNet ids"
        )
    if not keys & asked.keys():
        raise UserError(f"{model_name}: has none of the classes of {set_name}: {_why(asked, keys)}")
    missing = tuple(name for key, name in asked.items() if key not in places)
    columns = tuple(sorted(places[key] for key in asked if key in places))
    return Matched(torch.tensor(column_of), columns, len(asked), missing)


def _key(label: LabelInfo) -> tuple[str, str]:
    return ("wnid", label.wnid) if label.wnid else ("name", label.name)


def _why(asked: Iterable[tuple[str, str]], has: Iterable[tuple[str, str]]) -> str:
    ours, theirs = (sorted(each) for each in (asked, has))
    kinds = [{kind for kind, _ in each} for each in (ours, theirs)]
    if kinds == [{"wnid"}, {"name"}] or kinds == [{"name"}, {"wnid"}]:
        who = "the model's classes" if kinds[1] == {"name"} else "the set's classes"
        return f"{who} have names but no WordNet ids. Give them some, as `wnid` in the labels of dataset.json"
    return f"it knows {theirs[0][1]!r} and others, the set {ours[0][1]!r} and others"
