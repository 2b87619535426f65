"""The training crop of semantic segmentation: a random scale, a random position, a flip and a distortion."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.data.crops.distort import PhotometricDistortion
from c2fmae.data.geometry import resized_crop_ids, resized_crop_image, scene_size
from c2fmae.data.segmentation_batch import SegmentationSample

_MAX_REDRAWS = 10
_MAX_LONG_SIDE = 4  # relative to the short side: 2048 of 512
_DISTORTION = PhotometricDistortion()


@dataclass(frozen=True, kw_only=True)
class ScaledCrop:
    """The crop with which MAE, BEiT and CAE train on ADE20K.

    The image is scaled so that its shorter side is `short_side` · r, with r uniform in `scale`, and its longer side at
    most four times that; then a crop of `size` is cut at a random position. A side of the scaled image that is shorter
    than the crop is taken completely. Both happen in one resize of the part of the image that the crop shows.
    """

    size: tuple[int, int]
    """Largest height and width of a sample."""
    short_side: int
    """Shorter side of an image at scale 1, in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    """The position is drawn again, at most 10 times, while one class has this share of the labelled pixels or more, or
    no pixel is labelled; 1 accepts every position."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    distort: bool = True
    """Whether to change brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        if min(*self.size, self.short_side) < 1:
            raise UserError(f"size, short_side: expected at least 1 pixel, got {self.size} and {self.short_side}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale: expected two ascending numbers above 0, got {self.scale}")
        for name in ("max_class_share", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: expected 0 to 1, got {getattr(self, name)}")

    def __call__(self, scene: Scene, rng: np.random.Generator) -> SegmentationSample:
        """Return a random crop; its ids are at full size, from the nearest cell of a map at a label stride."""
        factor, flip_chance = rng.random(2).tolist()
        positions = rng.random((1 + _MAX_REDRAWS, 2))
        box, ids = self._draw_box(scene, self.scale[0] + (self.scale[1] - self.scale[0]) * factor, positions)
        image = resized_crop_image(scene.maps["rgb"], box, (ids.shape[0], ids.shape[1]))
        if flip_chance < self.flip:
            image, ids = image.flip(-1), ids.flip(-1)
        return SegmentationSample(scene.key, _DISTORTION(image, rng) if self.distort else image, ids)

    def _draw_box(self, scene: Scene, factor: float, positions: np.ndarray) -> tuple[CropBox, Tensor]:
        """Return the box of a crop in the source, and its ids."""
        height, width = scene_size(scene)
        scale = scale_factor(height, width, self.short_side * factor)
        (rows, target_rows), (columns, target_columns) = (
            crop_lengths(side, scale, target) for side, target in zip((height, width), self.size, strict=True)
        )
        boxes = [
            CropBox(int(down * (height - rows + 1)), int(across * (width - columns + 1)), rows, columns)
            for down, across in positions.tolist()
        ]
        *attempts, last = boxes
        target = (target_rows, target_columns)
        for box in attempts:
            ids = resized_crop_ids(scene.maps["semantic"], box, target, stride=scene.label_stride)
            if self.max_class_share == 1 or largest_class_share(ids) < self.max_class_share:
                return box, ids
        return last, resized_crop_ids(scene.maps["semantic"], last, target, stride=scene.label_stride)


def scale_factor(height: int, width: int, short_side: float) -> float:
    """Return the factor that makes the shorter side `short_side`, and the longer one at most four times that."""
    return min(short_side / min(height, width), _MAX_LONG_SIDE * short_side / max(height, width))


def crop_lengths(side: int, scale: float, target: int) -> tuple[int, int]:
    """Return how many pixels of a side a crop of `target` pixels shows, and how many it has itself.

    >>> crop_lengths(600, 2.0, 512), crop_lengths(600, 0.5, 512)
    ((256, 512), (600, 300))
    """
    if side * scale < target:
        return side, max(round(side * scale), 1)
    return min(math.ceil(target / scale), side), target


def largest_class_share(ids: UInt8[Tensor, "rows columns"]) -> float:
    """Return the share of the labelled pixels that the most frequent class has; 1 if no pixel is labelled."""
    counts = torch.bincount(ids.flatten(), minlength=IGNORE + 1)[:IGNORE]
    labelled = int(counts.sum())
    return int(counts.max()) / labelled if labelled else 1.0
