"""Checks that scenes fit a model; errors name the map, the scene and a fix."""

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.models.patches import label_stride

_ID_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def require_map(scenes: SceneBatch, name: str) -> Tensor:
    """Return a map of the scenes; raise a UserError if it is missing."""
    if name not in scenes.maps:
        names = ", ".join(scenes.maps) or "no maps"
        raise UserError(
            f"{name}: the scenes have no such map (got {names}). "
            f"Use data with {name} maps, or remove {name} from granularities"
        )
    return scenes.maps[name]


def check_guide(name: str, guide: Tensor, batch: int, grid: tuple[int, int]) -> None:
    """Raise a UserError unless the cells of a guiding map divide evenly into the patches."""
    cells = tuple(guide.shape[1:])
    if guide.ndim == 3 and len(guide) == batch:
        side = cells[0] // grid[0]
        if side > 0 and cells == (grid[0] * side, grid[1] * side):
            return
    raise UserError(
        f"{name}: expected a map to guide masks of {batch} × {grid[0]} × {grid[1]} patches, "
        f"got {' × '.join(map(str, guide.shape))} cells. Crop all maps of a scene together"
    )


def check_images(name: str, images: Tensor, channels: int) -> None:
    """Raise a UserError unless images are uint8 with this number of channels."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
        expected = f"uint8 images [batch, {channels}, height, width]"
        raise UserError(f"{name}: expected {expected}, got {_dtype_and_shape(images)}. Set channels.{name}")


def check_continuous_map(name: str, scenes: SceneBatch) -> None:
    """Raise a UserError unless the map has one finite number per pixel."""
    values = scenes.maps[name]
    if values.ndim != 3 or values.dtype.is_complex:
        raise UserError(
            f"{name}: expected one number per pixel, [batch, height, width], got {_dtype_and_shape(values)}"
        )
    if values.is_floating_point() and values.device.type == "cpu":
        is_broken = ~values.isfinite().flatten(1).all(dim=1)
        if is_broken.any():
            key = scenes.keys[int(is_broken.nonzero()[0])]
            raise UserError(f"{key}: {name} has values that are not finite. Replace them, or remove the scene")


def check_id_map(name: str, scenes: SceneBatch, num_classes: int, *, patch_size: int) -> None:
    """Raise a UserError unless ids are at the label stride of the images and within the classes of the model."""
    ids, stride = scenes.maps[name], label_stride(patch_size)
    if ids.dtype not in _ID_DTYPES or ids.ndim != 3:
        raise UserError(f"{name}: expected integer ids [batch, rows, columns], got {_dtype_and_shape(ids)}")
    if "rgb" in scenes.maps:
        expected = tuple(side // stride for side in scenes.maps["rgb"].shape[-2:])
        if tuple(ids.shape[1:]) != expected:
            raise UserError(
                f"{name}: expected {expected[0]}×{expected[1]} cells, one per {stride}×{stride} pixels, "
                f"got {ids.shape[1]}×{ids.shape[2]}. Crop the scenes with label_stride={stride}"
            )
    if ids.device.type != "cpu":
        return  # reading values would synchronise the device
    if ids.dtype == torch.uint8 and ids.numel() and (ids + 1).amax() <= num_classes:
        return  # 255 + 1 is 0 in bytes, so this is the check below, 30 times as fast
    is_unknown = (ids < 0) | (ids >= num_classes) & (ids != IGNORE)
    if is_unknown.any():
        image = int(is_unknown.flatten(1).any(dim=1).nonzero()[0])
        largest_id = int(ids[image][is_unknown[image]].max())
        raise UserError(
            f"{scenes.keys[image]}: expected {name} ids from 0 to {num_classes - 1}, or {IGNORE} where unlabelled, "
            f"got {largest_id}. Set channels.{name} to the number of ids"
        )


def _dtype_and_shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
