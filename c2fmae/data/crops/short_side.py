"""The multi-scale training resize of Mask R-CNN and DETR: a random shorter side, and a crop half of the time."""

from dataclasses import dataclass

import numpy as np

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.crops.object_crop import check_probability, crop_sample
from c2fmae.data.crops.resize import fit_sides
from c2fmae.data.detection_batch import DetectionSample
from c2fmae.data.geometry import scene_size

_CROP_PROBABILITY = 0.5
_SIDES_BEFORE_CROP = (400, 500, 600)
_CROP_SIDES = (384, 600)


@dataclass(frozen=True, kw_only=True)
class ShortSideResize:
    """The image is resized so that its shorter side is one of `sides`, and its longer side at most `max_side`.

    With `crops`, half of the images are cropped before, by the policy of DETR: the image is resized to a shorter side
    of 400, 500 or 600 pixels; then a crop is cut whose height and width are 384 to 600 pixels, each drawn
    independently. Both resizes and the crop are one resize of the part of the image that the crop shows.
    """

    sides: tuple[int, ...]
    max_side: int
    crops: bool = False
    flip: float = 0.5
    """Probability of a horizontal flip."""
    min_visible: float = 0.01
    """Fraction of an object that must be in the crop, or the object is left out."""

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1:
            raise UserError(f"sides: expected at least one number of pixels, got {self.sides}")
        if self.max_side < max(self.sides):
            raise UserError(f"max_side: expected at least the largest of sides, {max(self.sides)}, got {self.max_side}")
        check_probability("flip", self.flip)
        check_probability("min_visible", self.min_visible)

    def __call__(self, scene: Scene, rng: np.random.Generator) -> DetectionSample:
        """Return a resized image or a part of one, with its objects."""
        box, size, is_flipped = self._draw_crop(scene_size(scene), rng)
        return crop_sample(scene, box, size, is_flipped=is_flipped, min_visible=self.min_visible)

    def draw_size(self, image_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Return the height and width of the sample that is drawn for an image of this size."""
        return self._draw_crop(image_size, rng)[1]

    def _draw_crop(
        self, image_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[CropBox, tuple[int, int], bool]:
        """Return the box in the image, the size to which it is resized, and whether it is flipped."""
        side_chance, flip_chance, crop_chance, first_chance, *crop_chances = rng.random(8).tolist()
        side = self.sides[int(side_chance * len(self.sides))]
        is_flipped = flip_chance < self.flip
        if not self.crops or crop_chance >= _CROP_PROBABILITY:
            return CropBox(0, 0, *image_size), fit_sides(image_size, side, self.max_side), is_flipped
        first_side = _SIDES_BEFORE_CROP[int(first_chance * len(_SIDES_BEFORE_CROP))]
        resized = fit_sides(image_size, first_side, self.max_side)
        crop = [_draw_crop_side(length, chance) for length, chance in zip(resized, crop_chances[:2], strict=True)]
        rows, columns = (
            max(round(length * stored / whole), 1)
            for length, stored, whole in zip(crop, image_size, resized, strict=True)
        )
        top, left = (
            int(chance * (stored - length + 1))
            for chance, stored, length in zip(crop_chances[2:], image_size, (rows, columns), strict=True)
        )
        return CropBox(top, left, rows, columns), fit_sides((crop[0], crop[1]), side, self.max_side), is_flipped


def _draw_crop_side(length: int, chance: float) -> int:
    """Return a side of a crop, uniform between the limits; a shorter side of the image is taken completely."""
    lowest, highest = (min(length, side) for side in _CROP_SIDES)
    return lowest + int(chance * (highest - lowest + 1))
