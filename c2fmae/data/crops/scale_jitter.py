"""Large-scale jitter: the training crop of ViTDet, on a canvas of one size."""

from dataclasses import dataclass

import numpy as np

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.crops.object_crop import check_probability, crop_sample
from c2fmae.data.crops.scaled_crop import crop_lengths
from c2fmae.data.detection_batch import DetectionSample
from c2fmae.data.geometry import scene_size


@dataclass(frozen=True, kw_only=True)
class ScaleJitter:
    """The image is scaled to fit a canvas that is r times as large, with r uniform in `scale`; then a crop is cut.

    With r above 1, the crop has a random position; a side of the scaled image that is shorter than the canvas is taken
    completely. Both happen in one resize of the part of the image that the crop shows.
    """

    canvas: tuple[int, int]
    """Largest height and width of a sample."""
    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5
    """Probability of a horizontal flip."""
    min_visible: float = 0.01
    """Fraction of an object that must be in the crop, or the object is left out."""

    def __post_init__(self) -> None:
        if min(self.canvas) < 1:
            raise UserError(f"canvas: expected at least 1 pixel, got {self.canvas}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale: expected two ascending numbers above 0, got {self.scale}")
        check_probability("flip", self.flip)
        check_probability("min_visible", self.min_visible)

    def __call__(self, scene: Scene, rng: np.random.Generator) -> DetectionSample:
        """Return a random crop with its objects."""
        box, size, is_flipped = self._draw_crop(scene_size(scene), rng)
        return crop_sample(scene, box, size, is_flipped=is_flipped, min_visible=self.min_visible)

    def draw_size(self, image_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Return the height and width of the crop that is drawn for an image of this size."""
        return self._draw_crop(image_size, rng)[1]

    def _draw_crop(
        self, image_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[CropBox, tuple[int, int], bool]:
        """Return the box in the image, the size to which it is resized, and whether it is flipped."""
        factor, down, across, flip_chance = rng.random(4).tolist()
        fitting = min(side / stored for side, stored in zip(self.canvas, image_size, strict=True))
        scale = fitting * (self.scale[0] + (self.scale[1] - self.scale[0]) * factor)
        (rows, target_rows), (columns, target_columns) = (
            crop_lengths(stored, scale, side) for stored, side in zip(image_size, self.canvas, strict=True)
        )
        top, left = int(down * (image_size[0] - rows + 1)), int(across * (image_size[1] - columns + 1))
        return CropBox(top, left, rows, columns), (target_rows, target_columns), flip_chance < self.flip
