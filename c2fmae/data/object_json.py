"""`KEY.objects.json` of a pack: the objects of an image, a list for each column.

    {"boxes": [[x0, y0, x1, y1], …], "labels": […], "is_crowd": […], "areas": […], "ids": […], "masks": […] or null}

Numbers are the shortest that give the same float32. Masks are COCO's compressed run lengths as text, at the size of the
image; null in data with boxes only. `"image_id"` is that of COCO, if there is one.
"""

import json
from typing import Any

import numpy as np
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.json_file import parse_json_object
from c2fmae.core.objects import Objects
from c2fmae.core.rle import decode_runs

OBJECTS_SUFFIX = "objects.json"
_MAX_NUMBER = 1e9
_MAX_ID = 2**63


def encode_objects(objects: Objects) -> bytes:
    """Return the content of a file; equal objects give equal bytes."""
    document: dict[str, Any] = {
        "boxes": [list(map(_shorten, box)) for box in objects.boxes.numpy()],
        "labels": objects.labels.tolist(),
        "is_crowd": objects.is_crowd.tolist(),
        "areas": list(map(_shorten, objects.areas.numpy())),
        "ids": objects.ids.tolist(),
        "masks": None if objects.masks is None else [counts.decode() for counts in objects.masks],
    }
    if objects.image_id is not None:
        document["image_id"] = objects.image_id
    return json.dumps(document, separators=(",", ":")).encode()


def decode_objects(data: bytes, num_classes: int, location: str, *, masks: bool = True) -> Objects:
    """Return the objects of a file, or raise a `UserError` that names it; `masks` of False leaves out masks."""
    try:
        return _parse_objects(parse_json_object(data), num_classes, masks=masks)
    except ValueError as error:
        raise UserError(f"{location}: {error}. Pack the sample again") from error


def check_masks(objects: Objects, height: int, width: int, location: str) -> None:
    """Raise a `UserError` for masks that do not have the size of the image."""
    for number, counts in enumerate(objects.masks or ()):
        try:
            runs = decode_runs(counts)
        except ValueError as error:
            raise UserError(f"{location}: masks[{number}] is invalid ({error}). Pack the sample again") from error
        if runs.min(initial=0) < 0 or runs.sum() != height * width:
            raise UserError(
                f"{location}: masks[{number}] covers {runs.sum()} pixels, but the image has {width}×{height}. Pack the"
                " sample again"
            )


def _parse_objects(document: dict[str, Any], num_classes: int, *, masks: bool) -> Objects:
    boxes = _read_list(document, "boxes", _is_box)
    labels = _read_list(document, "labels", lambda value: type(value) is int and 0 <= value < num_classes)
    is_crowd = _read_list(document, "is_crowd", lambda value: isinstance(value, bool))
    areas = _read_list(document, "areas", _is_number)
    ids = _read_list(document, "ids", lambda value: type(value) is int and abs(value) < _MAX_ID)
    outlines = None
    if document.get("masks") is not None:
        outlines = _read_list(document, "masks", lambda value: isinstance(value, str) and value.isascii())
    image_id = document.get("image_id")
    if image_id is not None and (type(image_id) is not int or abs(image_id) >= _MAX_ID):
        raise ValueError(f"image_id is {str(image_id)[:40]} (expected an integer)")
    columns = {"labels": labels, "is_crowd": is_crowd, "areas": areas, "ids": ids, "masks": outlines}
    for name, column in columns.items():
        if column is not None and len(column) != len(boxes):
            raise ValueError(f"has {len(boxes)} boxes, but {len(column)} {name}")
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(is_crowd, dtype=torch.bool),
        torch.tensor(areas, dtype=torch.float32),
        torch.tensor(ids, dtype=torch.int64),
        tuple(text.encode() for text in outlines) if outlines is not None and masks else None,
        image_id,
    )


def _read_list(document: dict[str, Any], name: str, is_valid: Any) -> list[Any]:
    values = document.get(name)
    if not isinstance(values, list):
        raise ValueError(f"has no list {name!r}")
    for number, value in enumerate(values):
        if not is_valid(value):
            raise ValueError(f"{name}[{number}] is invalid (got {str(value)[:40]})")
    return values


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _shorten(value: np.float32) -> float:
    return float(str(value))
