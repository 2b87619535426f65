"""Whether scenes fit a model, in sentences that name the map, the scene and what to do."""

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import IGNORE, SceneBatch
from c2fmae.models.patches import label_stride


def map_of(scenes: SceneBatch, name: str) -> Tensor:
    """Return a map that the scenes must have."""
    if name not in scenes.maps:
        raise UserError(f"the scenes lack {name}; they have {', '.join(scenes.maps) or 'no maps'}")
    return scenes.maps[name]


def check_photos(name: str, photos: Tensor, channels: int) -> None:
    """Refuse what are no bytes of so many channels."""
    if photos.dtype != torch.uint8 or photos.ndim != 4 or photos.shape[1] != channels:
        kind = f"{str(photos.dtype).removeprefix('torch.')} {tuple(photos.shape)}"
        raise UserError(f"{name}: expected photos as bytes, [batch, {channels}, height, width], got {kind}")


def check_ids(name: str, scenes: SceneBatch, num_classes: int, *, patch: int) -> None:
    """Refuse maps that do not lie at the label stride of their photos, and ids that the model does not know."""
    ids, stride = scenes.maps[name], label_stride(patch)
    if "rgb" in scenes.maps:
        expected = tuple(side // stride for side in scenes.maps["rgb"].shape[-2:])
        if tuple(ids.shape[1:]) != expected:
            raise UserError(
                f"{name}: expected {expected[0]}×{expected[1]} cells, one for {stride}×{stride} pixels, "
                f"got {ids.shape[1]}×{ids.shape[2]}. Cut the scenes with label_stride={stride}"
            )
    if ids.device.type != "cpu":
        return  # to look at values would wait for the device
    is_unknown = (ids >= num_classes) & (ids != IGNORE)
    if is_unknown.any():
        image = int(is_unknown.flatten(1).any(dim=1).nonzero()[0])
        largest = int(ids[image][is_unknown[image]].max())
        raise UserError(
            f"{scenes.keys[image]}: {name} has the id {largest}, but the model knows {num_classes} "
            f"(0 to {num_classes - 1}, and {IGNORE} for what nobody labelled). Set channels.{name}"
        )
