"""A resized crop of an image with its objects: what the training crops of detection have in common."""

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from c2fmae.core.box_masks import BoxMasks
from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.objects import crop_objects
from c2fmae.core.scene import Scene
from c2fmae.data.detection_batch import DetectionSample
from c2fmae.data.geometry import resized_crop_image, scene_size


def crop_sample(
    scene: Scene, box: CropBox, size: tuple[int, int], *, is_flipped: bool, min_visible: float
) -> DetectionSample:
    """Return a box of an image, resized to `size` and flipped, with the objects to train on.

    Crowds are left out, and objects without a pixel, with a box narrower than one pixel, or of which less than the
    fraction `min_visible` is left. An object that is cut gets the tight box of the rest of its mask.
    """
    if scene.objects is None:
        raise ValueError(f"{scene.key}: expected a scene with objects")
    image = resized_crop_image(scene.maps["rgb"], box, size)
    objects = scene.objects.select(~scene.objects.is_crowd)
    cropped = crop_objects(objects, scene_size(scene), box, size, is_flipped=is_flipped, min_visible=min_visible)
    objects = objects.select(cropped.rows)
    is_whole = _is_inside(objects.boxes, box)
    moved = _move_boxes(objects.boxes, box, size, is_flipped=is_flipped)
    boxes = torch.where(is_whole[:, None], moved, cropped.boxes)
    is_large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
    masks = None
    if cropped.masks is not None:
        visible = [mask for mask, keep in zip(cropped.masks, is_large.tolist(), strict=True) if keep]
        masks = BoxMasks.from_masks(visible, cropped.boxes[is_large].int())
    image = image.flip(-1) if is_flipped else image
    return DetectionSample(scene.key, image, boxes[is_large], objects.labels[is_large], masks)


def _is_inside(boxes: Float32[Tensor, "object 4"], box: CropBox) -> Bool[Tensor, " object"]:
    limits = torch.tensor([box.left, box.top, box.left + box.width, box.top + box.height])
    return (boxes[:, :2] >= limits[:2]).all(dim=1) & (boxes[:, 2:] <= limits[2:]).all(dim=1)


def _move_boxes(
    boxes: Float32[Tensor, "object 4"], box: CropBox, size: tuple[int, int], *, is_flipped: bool
) -> Float32[Tensor, "object 4"]:
    """Return boxes of an image in pixels of its resized crop; they may reach beyond it."""
    height, width = size
    factors = torch.tensor([width / box.width, height / box.height])
    x0, y0, x1, y1 = ((boxes.view(-1, 2, 2) - torch.tensor([box.left, box.top])) * factors).flatten(1).unbind(dim=1)
    return torch.stack([width - x1, y0, width - x0, y1] if is_flipped else [x0, y0, x1, y1], dim=1)


def check_probability(name: str, value: float) -> None:
    """Raise a `UserError` for a number that is no probability."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}: expected 0 to 1, got {value}")
