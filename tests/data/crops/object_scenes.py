"""Scenes with objects for the tests of crops, and what a resized crop of them shows by a naive rule."""

from collections.abc import Sequence

import numpy as np
import torch

from c2fmae.core.crop_box import CropBox
from c2fmae.core.objects import Objects
from c2fmae.core.rle import encode_mask
from c2fmae.core.scene import Scene
from c2fmae.data.detection_batch import DetectionSample


def tight_corners(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def make_objects(
    masks: Sequence[np.ndarray],
    *,
    labels: Sequence[int] | None = None,
    crowds: Sequence[bool] = (),
    boxes_only: bool = False,
) -> Objects:
    """Return objects with these masks, and their tight boxes; by default, the labels are 0, 1, ..."""
    count = len(masks)
    return Objects(
        torch.tensor([tight_corners(mask) for mask in masks], dtype=torch.float32).view(-1, 4),
        torch.arange(count) if labels is None else torch.tensor(labels),
        torch.tensor([*crowds, *[False] * (count - len(crowds))], dtype=torch.bool),
        torch.tensor([float(mask.sum()) for mask in masks]),
        torch.arange(count) + 100,
        None if boxes_only else tuple(encode_mask(mask.astype(np.uint8)) for mask in masks),
    )


def draw_blobs(rng: np.random.Generator, height: int, width: int, count: int) -> list[np.ndarray]:
    """Return filled ellipses with a hole, each with at least one pixel in the image."""
    rows, columns = np.mgrid[:height, :width]
    masks: list[np.ndarray] = []
    while len(masks) < count:
        x, y, a, b = rng.uniform((0, 0, 0.5, 0.5), (width, height, width / 2, height / 2))
        distance = ((columns + 0.5 - x) / a) ** 2 + ((rows + 0.5 - y) / b) ** 2
        mask = (distance < 1) & (distance > 0.1)
        if mask.any():
            masks.append(mask)
    return masks


def make_scene(height: int, width: int, objects: Objects, *, brightness: np.ndarray | None = None) -> Scene:
    """Return a scene whose image holds the row and the column of each pixel, or a brightness."""
    if brightness is not None:
        image = torch.from_numpy(brightness.astype(np.uint8)).expand(3, height, width).contiguous()
    else:
        rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
        planes = [rows.expand(height, width), columns.expand(height, width), (rows + columns) // 2]
        image = torch.stack(planes).to(torch.uint8)
    return Scene("key", {"rgb": image}, objects=objects)


def resize_naively(mask: np.ndarray, box: CropBox, size: tuple[int, int], *, is_flipped: bool) -> np.ndarray:
    """Return the mask of a resized crop: each pixel is the one of the mask under its centre."""
    rows = [int(box.top + (row + 0.5) * box.height / size[0]) for row in range(size[0])]
    columns = [int(box.left + (column + 0.5) * box.width / size[1]) for column in range(size[1])]
    resized = mask[np.ix_(rows, columns)]
    return resized[:, ::-1] if is_flipped else resized


def paint_masks(sample: DetectionSample) -> np.ndarray:
    """Return the masks of a sample at its size."""
    assert sample.masks is not None
    height, width = sample.image.shape[1:]
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    every = torch.arange(len(sample.masks))
    return sample.masks.read_pixels(every, columns.expand(len(every), 1, -1), rows.expand(len(every), -1, 1)).numpy()
