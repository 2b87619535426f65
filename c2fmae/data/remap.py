"""Conversion of the ids in a file to those of a label space."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.text import format_count

Colour = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""

IdTable = Integer[np.ndarray, " values"]

_OUTSIDE = -1


def build_id_table(num_classes: int, *, ignore: int = IGNORE, offset: int = 0, bits: int = 8) -> IdTable:
    """Return the new id of every value that a file with `bits` bits can hold; -1 is outside the label space.

    Class c is `offset` + c in the file. `ignore` and the highest value of the bits are "not labelled". `num_classes` of
    0 accepts all ids.

    >>> build_id_table(2)[[0, 1, 2, 255]]
    array([  0,   1,  -1, 255])
    >>> build_id_table(2, offset=1, ignore=0)[[0, 1, 2, 255]]
    array([255,   0,   1, 255])
    """
    table = np.full(1 << bits, _OUTSIDE)
    count = min(num_classes or IGNORE, max(len(table) - offset, 0))
    table[offset : offset + count] = np.arange(count)
    table[[min(ignore, len(table) - 1), -1]] = IGNORE
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


def colours_to_ids(
    pixels: UInt8[np.ndarray, "3 height width"], colours: Sequence[Colour], ignore: Colour, location: str
) -> UInt8[np.ndarray, "height width"]:
    """Return the index in `colours` of every pixel, and 255 for pixels of the colour `ignore`, unless it is listed.

    Raise a `UserError` with the most frequent colour that is neither.
    """
    ids_by_code = {_colour_code(ignore): IGNORE} | {_colour_code(colour): id_ for id_, colour in enumerate(colours)}
    codes = np.array(sorted(ids_by_code), np.int32)
    red, green, blue = pixels.astype(np.int32)
    stored: Int32[np.ndarray, "height width"] = (red << 16) | (green << 8) | blue
    position = np.searchsorted(codes, stored).clip(max=len(codes) - 1)
    is_unknown = codes[position] != stored
    if is_unknown.any():
        values, counts = np.unique(stored[is_unknown], return_counts=True)
        worst = int(counts.argmax())
        others = f" (and {format_count(len(values) - 1, 'more colour')})" if len(values) > 1 else ""
        colour = [int(values[worst]) >> shift & 255 for shift in (16, 8, 0)]
        raise UserError(
            f"{location}: colour {colour} on {counts[worst]} pixels{others} is not one of the {len(colours)} `colours`"
            " of dataset.json. Add it there, or give it as `ignore`"
        )
    ids: UInt8[np.ndarray, " colours"] = np.array([ids_by_code[code] for code in codes.tolist()], np.uint8)
    return ids.take(position)


def _colour_code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue
