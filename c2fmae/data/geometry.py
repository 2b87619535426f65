"""Crops and resizes that keep image, maps and objects of a scene aligned: pure functions, exact in integers.

Images are resized bicubically with antialiasing, like Pillow's (to at least 50 dB; noise differs most). Ids are never
interpolated: a cell of the target gets the id of the stored cell nearest to its centre.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from c2fmae.core.crop_box import CropBox, nearest_cells
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.objects import resize_objects, scale_objects
from c2fmae.core.scene import Scene


def scene_size(scene: Scene) -> tuple[int, int]:
    """Return height and width in pixels; those of the maps at full size if a scene has id maps only."""
    for name, tensor in scene.maps.items():
        if GRANULARITIES.get(name).kind != "ids":
            return tensor.shape[-2], tensor.shape[-1]
    tensor = next(iter(scene.maps.values()))
    return tensor.shape[-2] * scene.label_stride, tensor.shape[-1] * scene.label_stride


def resized_crop(
    scene: Scene, box: CropBox, size: tuple[int, int], *, label_stride: int = 1, is_flipped: bool = False
) -> Scene:
    """Crop maps and objects to a box and resize them to `size`, id maps to 1 / `label_stride` of it; then flip them.

    Continuous maps are not interpolated: the edge between a near and a far object is not at their mean distance.
    """
    if size[0] % label_stride or size[1] % label_stride:
        raise ValueError(f"label stride {label_stride} does not divide the size {size[0]}×{size[1]}")
    cells = (size[0] // label_stride, size[1] // label_stride)
    maps = {}
    for name, tensor in scene.maps.items():
        spec = GRANULARITIES.get(name)
        if spec.resize == "antialias":
            resized = resized_crop_image(tensor, box, size)
            maps[name] = resized.flip(-1) if is_flipped else resized
        elif spec.kind == "ids":
            maps[name] = resized_crop_ids(tensor, box, cells, stride=scene.label_stride, is_flipped=is_flipped)
        else:
            maps[name] = resized_crop_ids(tensor, box, size, is_flipped=is_flipped)
    objects = scene.objects
    if objects is not None:
        objects = resize_objects(objects, scene_size(scene), box, size, is_flipped=is_flipped)
    return Scene(scene.key, maps, scene.label, label_stride, objects)


def resized_crop_image(
    image: UInt8[Tensor, "channels height width"], box: CropBox, size: tuple[int, int]
) -> UInt8[Tensor, "channels rows columns"]:
    """Crop an image to a box and resize it."""
    region = image[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    if size == (box.height, box.width):
        return region[0].clone(memory_format=torch.contiguous_format)
    # In another memory format, interpolation makes this copy itself, more slowly.
    pixels = region.contiguous(memory_format=torch.channels_last)
    return F.interpolate(pixels, size, mode="bicubic", antialias=True)[0].contiguous()


def resized_crop_ids(
    ids: Shaped[Tensor, "height width"],
    box: CropBox,
    cells: tuple[int, int],
    *,
    stride: int = 1,
    is_flipped: bool = False,
) -> Shaped[Tensor, "rows columns"]:
    """Crop a map stored at `stride` to a box in pixels of the image, and resize it to `cells`."""
    rows = nearest_cells(box.top, box.height, cells[0], ids.shape[0], stride)
    columns = nearest_cells(box.left, box.width, cells[1], ids.shape[1], stride)
    # NumPy's `take` is five times as fast as indexing a tensor with two lists.
    return torch.from_numpy(ids.numpy().take(rows, axis=0).take(columns[::-1] if is_flipped else columns, axis=1))


def subsample_ids(ids: Shaped[Tensor, "height width"], stride: int) -> Shaped[Tensor, "rows columns"]:
    """Subsample a map at full size to the ⌈H/s⌉ × ⌈W/s⌉ cells that are stored at a stride."""
    rows, columns = (stored_pixels(length, stride) for length in ids.shape)
    return torch.from_numpy(ids.numpy().take(rows, axis=0).take(columns, axis=1))


def stored_pixels(length: int, stride: int) -> Int[np.ndarray, " cells"]:
    """Return the rows or columns of an image of which the cells of a map are stored at a stride.

    >>> stored_pixels(9, 4)
    array([2, 6, 8])
    """
    return (np.arange(-(-length // stride)) * stride + stride // 2).clip(max=length - 1)


def resize_scene(scene: Scene, height: int, width: int) -> Scene:
    """Resize a scene with all of its objects; its id maps become full-size."""
    size = scene_size(scene)
    resized = resized_crop(replace(scene, objects=None), CropBox(0, 0, *size), (height, width))
    objects = None if scene.objects is None else scale_objects(scene.objects, size, (height, width))
    return replace(resized, objects=objects)


def central_crop_box(height: int, width: int, aspect: float, fraction: float = 1.0) -> CropBox:
    """Return the central box of an aspect ratio (width by height) with `fraction` of the largest sides that fit."""
    rows = max(round(fraction * min(height, width / aspect)), 1)
    columns = max(round(fraction * min(width, height * aspect)), 1)
    return CropBox((height - rows) // 2, (width - columns) // 2, rows, columns)
