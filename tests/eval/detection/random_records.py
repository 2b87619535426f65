"""Random objects and detections, many of them near objects, for tests of scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Detections, Objects
from c2fmae.core.rle import encode_mask
from c2fmae.eval.detection.coco_format import ImageRecord

SIZE = (160, 200)
CLASSES = tuple(ClassInfo(name=name) for name in ("cat", "dog", "bird", "unicorn"))
"""No object is a unicorn, but some detections are."""


def draw_records(
    count: int, *, seed: int = 0, has_masks: bool = True, extra: int = 6, decimals: int | None = None
) -> list[ImageRecord]:
    """Return records of images: the first has no objects, the second no detections, the third crowds only.

    Scores have many ties if they are rounded to few `decimals`.
    """
    rng = np.random.default_rng(seed)
    records = []
    for row in range(count):
        boxes = _draw_boxes(rng, 0 if row == 0 else int(rng.integers(1, 6)))
        labels = rng.integers(0, 3, len(boxes))
        is_crowd = (rng.random(len(boxes)) < 0.15) | (row == 2)
        copies = np.repeat(np.arange(len(boxes)), rng.integers(0, 4, len(boxes)))
        found = np.concatenate([boxes[copies] + rng.normal(0, 3, (len(copies), 4)), _draw_boxes(rng, extra)])
        found_labels = np.concatenate([labels[copies], rng.integers(0, 4, extra)])
        is_other = rng.random(len(found)) < 0.15
        found_labels[is_other] = rng.integers(0, 4, int(is_other.sum()))
        if row == 1:
            found, found_labels = found[:0], found_labels[:0]
        found = np.sort(found.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        scores = rng.random(len(found))
        scores = scores if decimals is None else scores.round(decimals)
        objects = Objects(
            torch.from_numpy(boxes).float(),
            torch.from_numpy(labels),
            torch.from_numpy(is_crowd),
            torch.from_numpy(0.8 * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).float(),
            torch.arange(len(boxes)),
            draw_masks(boxes) if has_masks else None,
        )
        detections = Detections(
            torch.from_numpy(found).float(),
            torch.from_numpy(scores).float(),
            torch.from_numpy(found_labels),
            draw_masks(found) if has_masks else None,
        )
        records.append(ImageRecord(row, f"image-{row:03d}", SIZE, objects, detections))
    return records


def draw_masks(boxes: NDArray[Any], size: tuple[int, int] = SIZE) -> tuple[bytes, ...]:
    """Return a mask for each box: an ellipse in it."""
    rows, columns = np.indices(size) + 0.5
    masks = []
    for x0, y0, x1, y1 in boxes.tolist():
        radii = ((columns - (x0 + x1) / 2) / (x1 - x0 + 1e-9)) ** 2 + ((rows - (y0 + y1) / 2) / (y1 - y0 + 1e-9)) ** 2
        masks.append(encode_mask((radii < 0.25).astype(np.uint8)))
    return tuple(masks)


def rename_categories(ids: Sequence[int]) -> tuple[ClassInfo, ...]:
    """Return the classes with category ids of a file."""
    return tuple(entry.model_copy(update={"coco_id": number}) for entry, number in zip(CLASSES, ids, strict=True))


def _draw_boxes(rng: np.random.Generator, count: int) -> NDArray[Any]:
    """Return boxes from a few pixels to more than half of the image, in it."""
    sides = 5 * 30 ** np.sqrt(rng.random((count, 2)))
    corners = rng.random((count, 2)) * (np.array([SIZE[1], SIZE[0]]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)
