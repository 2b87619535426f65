"""Conversion of the ids in a file to those of a label space."""

import numpy as np
from jaxtyping import Integer, UInt8

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.text import format_count

IdTable = Integer[np.ndarray, " values"]

_OUTSIDE = -1


def build_id_table(
    num_classes: int, *, ignore: int = IGNORE, reduce_zero_label: bool = False, bits: int = 8
) -> IdTable:
    """Return the new id of every value that a file with `bits` bits can hold; -1 is outside the label space.

    Classes in the file are 0 to `num_classes` - 1, or with `reduce_zero_label` 1 to `num_classes`, where 0 is "not
    labelled". `ignore` and the highest value of the bits are "not labelled" too. `num_classes` of 0 accepts all ids.

    >>> build_id_table(2)[[0, 1, 2, 255]]
    array([  0,   1,  -1, 255])
    >>> build_id_table(2, reduce_zero_label=True)[[0, 1, 2, 255]]
    array([255,   0,   1, 255])
    """
    table = np.full(1 << bits, _OUTSIDE)
    first = int(reduce_zero_label)
    count = num_classes or IGNORE
    table[first : first + count] = np.arange(count)[: len(table) - first]
    table[[*([0] if reduce_zero_label else []), min(ignore, len(table) - 1), -1]] = IGNORE
    return table


def is_within_label_space(ids: UInt8[np.ndarray, "height width"], num_classes: int) -> bool:
    """Return whether all ids are in a label space or 255, so that `remap_ids`, six times as slow, changes nothing."""
    return int((ids + np.uint8(1)).max(initial=0)) <= num_classes  # 255 + 1 wraps to 0


def remap_ids(
    ids: Integer[np.ndarray, "height width"], table: IdTable, location: str
) -> UInt8[np.ndarray, "height width"]:
    """Convert ids by a table. Raise a `UserError` with the most frequent id that is outside the label space."""
    is_listed = ids < len(table)
    new: np.ndarray = np.where(is_listed, table[np.where(is_listed, ids, 0)], _OUTSIDE)
    is_outside = new == _OUTSIDE
    if is_outside.any():
        values, counts = np.unique(ids[is_outside], return_counts=True)
        worst = int(counts.argmax())
        others = f" (and {format_count(len(values) - 1, 'more id')})" if len(values) > 1 else ""
        num_classes = int(table[table != IGNORE].max(initial=_OUTSIDE)) + 1
        raise UserError(
            f"{location}: id {values[worst]} on {counts[worst]} pixels{others} is outside the {num_classes} classes"
            " of the label space. Add the class to dataset.json, or map the id to its `ignore`"
        )
    return np.asarray(new, np.uint8)
