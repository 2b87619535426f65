"""Changes of size that keep the photo and the maps of a scene aligned."""

import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import GRANULARITIES, Scene


def resize_and_crop(scene: Scene, size: int) -> Scene:
    """Bring the shorter side to `size` and keep the central square, of every map alike.

    Photos are antialiased; ids are taken from the nearest pixel, never mixed. A square of that size stays as it is.
    """
    shapes = {name: tuple(tensor.shape[-2:]) for name, tensor in scene.maps.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{name} {height}×{width}" for name, (height, width) in shapes.items())
        raise UserError(f"{scene.key}: maps of one scene must have one size, got {sizes}")
    resize = {"antialias": _antialias, "nearest": _nearest}
    maps = {name: resize[GRANULARITIES.get(name).resize](tensor, size) for name, tensor in scene.maps.items()}
    return Scene(scene.key, maps, scene.label)


def _antialias(photo: UInt8[Tensor, "channels height width"], size: int) -> UInt8[Tensor, "channels size size"]:
    height, width = _resized(photo, size)
    resized = F.interpolate(photo[None].float(), (height, width), mode="bicubic", antialias=True)[0]
    top, left = (height - size) // 2, (width - size) // 2
    square = resized[:, top : top + size, left : left + size]
    return square.round().clamp(0, 255).to(torch.uint8)


def _nearest(ids: Shaped[Tensor, "height width"], size: int) -> Shaped[Tensor, "size size"]:
    rows, columns = (_sources(*lengths, size) for lengths in zip(ids.shape, _resized(ids, size), strict=True))
    return ids[rows[:, None], columns]


def _sources(length: int, resized: int, size: int) -> Int[Tensor, " size"]:
    """The pixels whose cells hold the centres of the `size` central ones of `resized`: (i + ½) · length / resized."""
    return (2 * (torch.arange(size) + (resized - size) // 2) + 1) * length // (2 * resized)


def _resized(tensor: Tensor, size: int) -> tuple[int, int]:
    height, width = tensor.shape[-2:]
    shorter = min(height, width)
    return round(height * size / shorter), round(width * size / shorter)
