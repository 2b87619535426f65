"""Whether scenes fit a model, in sentences that name the map, the scene and what to do."""

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.models.patches import label_stride

_ID_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def require_map(scenes: SceneBatch, name: str) -> Tensor:
    """Return a map that the scenes must have."""
    if name not in scenes.maps:
        raise UserError(f"the scenes lack {name}; they have {', '.join(scenes.maps) or 'no maps'}")
    return scenes.maps[name]


def check_guide(name: str, guide: Tensor, batch: int, grid: tuple[int, int]) -> None:
    """Refuse a map by which nothing can be hidden: one whose cells do not fall into the patches."""
    cells = tuple(guide.shape[1:])
    if guide.ndim == 3 and len(guide) == batch:
        side = cells[0] // grid[0]
        if side > 0 and cells == (grid[0] * side, grid[1] * side):
            return
    raise UserError(
        f"{name}: masks are guided by it, but {' × '.join(map(str, guide.shape))} does not fall into the "
        f"{batch} × {grid[0]} × {grid[1]} patches of the batch. Cut all maps of a scene together"
    )


def check_images(name: str, images: Tensor, channels: int) -> None:
    """Refuse what are no bytes of so many channels."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
        expected = f"photos as bytes, [batch, {channels}, height, width]"
        raise UserError(f"{name}: expected {expected}, got {_dtype_and_shape(images)}")


def check_continuous_map(name: str, scenes: SceneBatch) -> None:
    """Refuse what is no map of one finite value a pixel."""
    values = scenes.maps[name]
    if values.ndim != 3 or values.dtype.is_complex:
        raise UserError(f"{name}: expected one number a pixel, [batch, height, width], got {_dtype_and_shape(values)}")
    if values.is_floating_point() and values.device.type == "cpu":
        is_broken = ~values.isfinite().flatten(1).all(dim=1)
        if is_broken.any():
            key = scenes.keys[int(is_broken.nonzero()[0])]
            raise UserError(f"{key}: {name} has values that are not finite. Fill them in, or leave the scene out")


def check_id_map(name: str, scenes: SceneBatch, num_classes: int, *, patch_size: int) -> None:
    """Refuse maps that do not lie at the label stride of their photos, and ids that the model does not know."""
    ids, stride = scenes.maps[name], label_stride(patch_size)
    if ids.dtype not in _ID_DTYPES or ids.ndim != 3:
        raise UserError(f"{name}: expected ids as whole numbers, [batch, rows, columns], got {_dtype_and_shape(ids)}")
    if "rgb" in scenes.maps:
        expected = tuple(side // stride for side in scenes.maps["rgb"].shape[-2:])
        if tuple(ids.shape[1:]) != expected:
            raise UserError(
                f"{name}: expected {expected[0]}×{expected[1]} cells, one for {stride}×{stride} pixels, "
                f"got {ids.shape[1]}×{ids.shape[2]}. Cut the scenes with label_stride={stride}"
            )
    if ids.device.type != "cpu":
        return  # to look at values would wait for the device
    is_unknown = (ids < 0) | (ids >= num_classes) & (ids != IGNORE)
    if is_unknown.any():
        image = int(is_unknown.flatten(1).any(dim=1).nonzero()[0])
        largest_id = int(ids[image][is_unknown[image]].max())
        raise UserError(
            f"{scenes.keys[image]}: {name} has the id {largest_id}, but the model knows {num_classes} "
            f"(0 to {num_classes - 1}, and {IGNORE} for what nobody labelled). Set channels.{name}"
        )


def _dtype_and_shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
