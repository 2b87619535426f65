"""Outlines of COCO's objects (polygons, runs, packed runs) as packed runs, and those as maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError


def outline_to_rle(outline: list[Any] | dict[str, Any], size: tuple[int, int], location: str) -> bytes:
    """Return the `segmentation` of an annotation as COCO's packed runs, a fifth of a polygon's length.

    `size` is the image's height and width.
    """
    from pycocotools import mask  # type: ignore[import-untyped]  # loads a C library

    height, width = size
    try:
        if isinstance(outline, list):
            if not outline or any(len(polygon) < 6 or len(polygon) % 2 for polygon in outline):
                raise ValueError("a polygon has 3 points or more, x and y of each")
            packed: bytes = mask.merge(mask.frPyObjects(outline, height, width))["counts"]
            return packed
        counts = outline["counts"]
        if isinstance(counts, list):
            packed = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        else:
            packed = counts.encode()
        runs = _decode_rle(packed)
        if runs.min(initial=0) < 0 or runs.sum() != height * width:
            raise ValueError(f"its runs make {runs.sum()} pixels, not {width}×{height}")
    except Exception as error:  # pycocotools answers with errors of half a dozen kinds
        raise UserError(f"{location}: not an outline ({error}). Mend or remove it") from error
    return packed


def paint_outlines(outlines: Sequence[bytes], size: tuple[int, int]) -> Int64[np.ndarray, "height width"]:
    """Return k at the pixels of the k-th outline, counted from 1, and 0 elsewhere.

    Larger ones are painted first, of equal ones the earlier, so that small ones stay on top. One at a time is
    filled: many large outlines need no more memory than one.
    """
    height, width = size
    runs = [_decode_rle(counts) for counts in outlines]
    owner = np.zeros(height * width, np.int64)
    for k in np.argsort([-one[1::2].sum() for one in runs], kind="stable"):
        owner[np.repeat(np.arange(len(runs[k])) % 2 == 1, runs[k])] = k + 1  # outside, inside, outside, …
    return owner.reshape(width, height).T  # runs go down the columns


def _decode_rle(counts: bytes) -> Int64[np.ndarray, " runs"]:
    """Undo COCO's packing: 5 bits a byte above 48, the lowest first, each run less the one two before it."""
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends + 1])
    if len(digits) != starts[-1] or (digits < 0).any() or (digits > 63).any():
        raise ValueError("its packed runs are cut or garbled")
    place = 5 * (np.arange(len(digits)) - np.repeat(starts[:-1], np.diff(starts)))
    runs = np.bincount(np.repeat(np.arange(len(ends)), np.diff(starts)), (digits & 31) << place).astype(np.int64)
    runs -= (digits[ends] & 16) << (place[ends] + 1)  # the sign is the highest bit
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
