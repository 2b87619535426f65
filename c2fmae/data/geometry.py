"""Cuts and changes of size that keep the photo and the maps of a scene aligned. Pure, exact in integers.

Photos are resized bicubically and antialiased, as Pillow does it (to 50 dB and more; noise differs most). Ids are never
mixed: a cell of the target takes the id at its centre, from the nearest that is stored.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.scene import Scene


@dataclass(frozen=True)
class CropBox:
    """A rectangle of pixels of a photo."""

    top: int
    left: int
    height: int
    width: int


def scene_size(scene: Scene) -> tuple[int, int]:
    """Return height and width in pixels; with nothing but id maps, of these at full size."""
    for name, tensor in scene.maps.items():
        if GRANULARITIES.get(name).kind != "ids":
            return tensor.shape[-2], tensor.shape[-1]
    tensor = next(iter(scene.maps.values()))
    return tensor.shape[-2] * scene.label_stride, tensor.shape[-1] * scene.label_stride


def resized_crop(
    scene: Scene, box: CropBox, size: tuple[int, int], *, label_stride: int = 1, is_flipped: bool = False
) -> Scene:
    """Cut a box out of all maps and bring it to `size`, id maps to 1 / `label_stride` of that; then mirror them.

    Continuous maps are not interpolated: between a near and a far thing nothing lies at half the distance.
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
    return Scene(scene.key, maps, scene.label, label_stride)


def resized_crop_image(
    image: UInt8[Tensor, "channels height width"], box: CropBox, size: tuple[int, int]
) -> UInt8[Tensor, "channels rows columns"]:
    """Cut a box out of a photo and bring it to `size`."""
    region = image[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    if size == (box.height, box.width):
        return region[0].clone(memory_format=torch.contiguous_format)
    pixels = region.contiguous(memory_format=torch.channels_last)  # without it interpolation copies it, and slowly
    return F.interpolate(pixels, size, mode="bicubic", antialias=True)[0].contiguous()


def resized_crop_ids(
    ids: Shaped[Tensor, "height width"],
    box: CropBox,
    cells: tuple[int, int],
    *,
    stride: int = 1,
    is_flipped: bool = False,
) -> Shaped[Tensor, "rows columns"]:
    """Cut a box, given in pixels of the photo, out of a map stored at `stride` and bring it to `cells`."""
    rows = _nearest_cells(box.top, box.height, cells[0], ids.shape[0], stride)
    columns = _nearest_cells(box.left, box.width, cells[1], ids.shape[1], stride)
    # NumPy's way of taking lines is five times as fast as indexing a tensor by two lists.
    return torch.from_numpy(ids.numpy().take(rows, axis=0).take(columns[::-1] if is_flipped else columns, axis=1))


def _nearest_cells(start: int, length: int, cells: int, stored: int, stride: int) -> Int[np.ndarray, " cells"]:
    """The stored cells nearest to the centres of `cells` equal parts of start … start + length.

    A centre lies at start + (i + ½) · length / cells; stored cell c holds the pixel whose centre is at
    s·c + s//2 + ½. So c = ⌊(centre - s//2 - ½ + s/2) / s⌋, here with everything times 2 · cells.
    """
    centres = np.arange(1, 2 * cells, 2) * length + (2 * start + stride - 2 * (stride // 2) - 1) * cells
    nearest = centres // (2 * cells * stride)
    return np.minimum(np.maximum(nearest, 0), stored - 1)  # for few numbers far quicker than `clip`


def subsample_ids(ids: Shaped[Tensor, "height width"], stride: int) -> Shaped[Tensor, "rows columns"]:
    """Thin a map at full size out to the cells that are stored at a stride: ⌈H/s⌉ × ⌈W/s⌉ of them."""
    rows, columns = ((np.arange(-(-n // stride)) * stride + stride // 2).clip(max=n - 1) for n in ids.shape)
    return torch.from_numpy(ids.numpy().take(rows, axis=0).take(columns, axis=1))


def resize_scene(scene: Scene, height: int, width: int) -> Scene:
    """Bring a whole scene to a size; its id maps come out at full size."""
    return resized_crop(scene, CropBox(0, 0, *scene_size(scene)), (height, width))


def central_crop_box(height: int, width: int, aspect: float, fraction: float = 1.0) -> CropBox:
    """Return the central box of that width by height, whose sides are `fraction` of the longest that fit."""
    rows = max(round(fraction * min(height, width / aspect)), 1)
    columns = max(round(fraction * min(width, height * aspect)), 1)
    return CropBox((height - rows) // 2, (width - columns) // 2, rows, columns)
