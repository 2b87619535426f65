"""COCO's object outlines (polygons, run lengths, compressed run lengths), and maps painted from them."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.core.rle import decode_runs
from c2fmae.data.decode import MAX_PIXELS


def outline_to_rle(outline: object, size: tuple[int, int], location: str) -> bytes:
    """Convert the `segmentation` of an annotation to COCO's compressed run lengths, a fifth of a polygon's length.

    `size` is the image's height and width.
    """
    from pycocotools import mask  # type: ignore[import-untyped]  # loads a C library

    height, width = size
    try:
        if min(size) < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"of an image of {width}×{height} pixels, expected 1 to {MAX_PIXELS} pixels")
        if isinstance(outline, list):
            if not outline or any(len(polygon) < 6 or len(polygon) % 2 for polygon in outline):
                raise ValueError("a polygon needs x and y of at least 3 points")
            if not all(_is_near(polygon, max(size)) for polygon in outline):  # pycocotools walks along all its sides
                raise ValueError("a polygon has points far outside of the image")
            packed: bytes = mask.merge(mask.frPyObjects(outline, height, width))["counts"]
            return packed
        if not isinstance(outline, dict):
            raise ValueError(f"{repr(outline)[:60]}, expected a list of polygons or {{size, counts}}")
        stated = outline.get("size", [height, width])
        if list(stated) != [height, width]:
            raise ValueError(f"its size is {stated}, expected [{height}, {width}]: the image's height and width")
        counts = outline["counts"]
        if isinstance(counts, list):
            packed = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        else:
            packed = counts.encode()
        runs = decode_runs(packed)
        if runs.min(initial=0) < 0 or runs.sum() != height * width:
            raise ValueError(f"its runs cover {runs.sum()} pixels, expected {width}×{height}")
    except Exception as error:  # pycocotools raises half a dozen types
        raise UserError(f"{location}: is not an outline ({error}). Fix or remove it") from error
    return packed


def _is_near(polygon: Sequence[float], side: int) -> bool:
    return math.isfinite(sum(polygon)) and -side <= min(polygon) and max(polygon) <= 2 * side


def paint_outlines(outlines: Sequence[bytes], size: tuple[int, int]) -> Int64[np.ndarray, "height width"]:
    """Return k at the pixels of the k-th outline, counted from 1, and 0 elsewhere.

    Larger outlines are painted first, equal ones in the given order, so that small ones stay on top. They are filled
    one at a time, so the memory does not depend on their number.
    """
    height, width = size
    runs = [decode_runs(counts) for counts in outlines]
    owner = np.zeros(height * width, np.int64)
    for k in np.argsort([-lengths[1::2].sum() for lengths in runs], kind="stable"):
        owner[np.repeat(np.arange(len(runs[k])) % 2 == 1, runs[k])] = k + 1  # outside, inside, outside, …
    return owner.reshape(width, height).T  # runs go down the columns
