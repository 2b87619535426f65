"""COCO's object outlines (polygons, run lengths, compressed run lengths), and maps painted from them."""

import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.core.rle import decode_runs
from c2fmae.data.decode import MAX_PIXELS

_POLYGONS = b"\0"  # not a digit of compressed run lengths
_SEPARATOR = array("d", [math.nan]).tobytes()
_MIN_NUMBERS = 6  # of 3 points


def outline_to_rle(outline: object, size: tuple[int, int], location: str) -> bytes:
    """Convert the `segmentation` of an annotation to COCO's compressed run lengths, a fifth of a polygon's length.

    `size` is the image's height and width.
    """
    return decode_outline(encode_outline(outline, size, location), size)


def encode_outline(outline: object, size: tuple[int, int], location: str) -> bytes:
    """Check the `segmentation` of an annotation, and return it as bytes, which `decode_outline` converts to a mask.

    Polygons stay polygons, since filling them takes most of the time that a json is read. Those of fewer than 3 points
    are left out, as in detectron2, unless there are no others.
    """
    height, width = size
    try:
        if min(size) < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"of an image of {width}×{height} pixels, expected 1 to {MAX_PIXELS} pixels")
        if isinstance(outline, list):
            return _encode_polygons(outline, max(size))
        if not isinstance(outline, dict):
            raise ValueError(f"{repr(outline)[:60]}, expected a list of polygons or {{size, counts}}")
        return _encode_runs(outline, height, width)
    except Exception as error:  # pycocotools raises half a dozen types
        raise UserError(f"{location}: is not an outline ({error}). Fix or remove it") from error


def decode_outline(data: bytes, size: tuple[int, int]) -> bytes:
    """Return the mask of an encoded outline as COCO's compressed run lengths."""
    if not data.startswith(_POLYGONS):
        return data
    from pycocotools import mask  # type: ignore[import-untyped]  # loads a C library

    numbers = np.frombuffer(data, offset=len(_POLYGONS))
    gaps = np.flatnonzero(np.isnan(numbers)).tolist()
    polygons = [numbers[a + 1 : b] for a, b in pairwise([-1, *gaps, len(numbers)])]
    masks = mask.frPyObjects(polygons, *size)
    packed: bytes = (mask.merge(masks) if len(masks) > 1 else masks[0])["counts"]
    return packed


def count_short_polygons(outline: object) -> int:
    """Return how many polygons have fewer than 3 points."""
    return sum(len(polygon) < _MIN_NUMBERS for polygon in outline) if isinstance(outline, list) else 0


def _encode_polygons(polygons: Sequence[Sequence[float]], side: int) -> bytes:
    """Return the numbers of polygons, with NaN between them."""
    encoded = []
    for polygon in polygons:
        if len(polygon) < _MIN_NUMBERS:
            continue
        if len(polygon) % 2:
            raise ValueError("a polygon needs x and y of at least 3 points")
        # pycocotools walks along all sides; a NaN may be neither the minimum nor the maximum
        if not (math.isfinite(sum(polygon)) and -side <= min(polygon) and max(polygon) <= 2 * side):
            raise ValueError("a polygon has points far outside of the image")
        encoded.append(array("d", polygon).tobytes())
    if not encoded:
        raise ValueError("a polygon needs x and y of at least 3 points")
    return _POLYGONS + _SEPARATOR.join(encoded)


def _encode_runs(outline: Mapping[str, Any], height: int, width: int) -> bytes:
    """Return run lengths compressed."""
    from pycocotools import mask

    stated = outline.get("size", [height, width])
    if list(stated) != [height, width]:
        raise ValueError(f"its size is {stated}, expected [{height}, {width}]: the image's height and width")
    counts = outline["counts"]
    packed: bytes
    if isinstance(counts, list):
        packed = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    else:
        packed = counts.encode()
    runs = decode_runs(packed)
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"its runs cover {runs.sum()} pixels, expected {width}×{height}")
    return packed


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
