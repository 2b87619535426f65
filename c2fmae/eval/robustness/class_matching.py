"""Matching of a set's classes with a model's: by WordNet id, or by name if neither has one, but never by index."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.suites import LabelMap, find_accepted_columns
from c2fmae.data.suites.label_map import class_key


@dataclass(frozen=True)
class ClassMatching:
    """The classes of a set among those of a model."""

    accepted: Bool[Tensor, "label column"]
    """Whether each logit is correct for each label of the set; none is for a label whose classes the model lacks."""
    columns: tuple[int, ...]
    """The logits of the requested classes, in ascending order."""
    num_requested: int
    """The number of requested classes, including those that the model lacks."""
    missing_names: tuple[str, ...]
    """Names of the requested classes that the model lacks."""


def match_classes(
    label_map: LabelMap,
    protocol_wnids: Sequence[str] | None,
    model_labels: Sequence[LabelInfo | None],
    *,
    set_name: str,
    model_name: str,
) -> ClassMatching:
    """Return the logits of a model that are correct for each label of a set, and the logits of all requested classes.

    `protocol_wnids` lists the requested classes (the 200 of ImageNet-A, for example); None requests the classes of the
    labels. Raises a `UserError` if the model has none of them.
    """
    accepted_classes = [label for labels in label_map for label in labels]
    if protocol_wnids is None:
        requested = {class_key(label): label.name for label in accepted_classes}
    else:
        names = {label.wnid: label.name for label in accepted_classes}
        requested = {("wnid", wnid): names.get(wnid, wnid) for wnid in protocol_wnids}
    column_by_key = {class_key(label): column for column, label in enumerate(model_labels) if label}
    counts = Counter(class_key(label) for label in model_labels if label)
    if duplicate := next((key for key in requested if counts[key] > 1), None):
        raise UserError(
            f"{model_name}: has two classes named {duplicate[1]!r}, so predictions on {set_name} are ambiguous. Give "
            "its classes WordNet ids"
        )
    if not column_by_key.keys() & requested.keys():
        reason = _explain_no_match(requested, column_by_key)
        raise UserError(f"{model_name}: has none of the classes of {set_name}: {reason}")
    return ClassMatching(
        find_accepted_columns(label_map, model_labels),
        tuple(sorted(column_by_key[key] for key in requested if key in column_by_key)),
        len(requested),
        tuple(name for key, name in requested.items() if key not in column_by_key),
    )


def _explain_no_match(set_keys: Iterable[tuple[str, str]], model_keys: Iterable[tuple[str, str]]) -> str:
    set_sorted, model_sorted = sorted(set_keys), sorted(model_keys)
    kinds = [{kind for kind, _ in keys} for keys in (set_sorted, model_sorted)]
    if kinds == [{"wnid"}, {"name"}] or kinds == [{"name"}, {"wnid"}]:
        owner = "the model's classes" if kinds[1] == {"name"} else "the set's classes"
        return f"{owner} have names but no WordNet ids. Add them as `wnid` in the labels of dataset.json"
    return f"the model has {model_sorted[0][1]!r} and others, the set {set_sorted[0][1]!r} and others"
