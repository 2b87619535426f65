"""Transforms from a stored scene to a sample for a model: one crop for the image and all its maps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float64

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import InstanceOverflow
from c2fmae.core.scene import Scene
from c2fmae.data.geometry import central_crop_box, resized_crop, scene_size
from c2fmae.data.instance_order import renumber_instances
from c2fmae.data.sampler import DataPosition

MAX_CROP_ATTEMPTS = 10


@runtime_checkable
class Transform(Protocol):
    """A function from a scene to a sample; its only source of randomness is `rng`."""

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Return a sample of the scene."""


@dataclass(frozen=True)
class TransformSchedule:
    """Transforms that change in the course of a run, in place of one."""

    choose: Callable[[DataPosition], Transform]
    """A function from the position of a batch to the transform of its scenes."""


@dataclass(frozen=True, kw_only=True)
class _SampleFormat:
    """The format of every sample."""

    size: tuple[int, int]
    """Height and width of the image, in pixels."""
    label_stride: int = 1
    """Side of the id maps' cells, in pixels."""
    max_instances: int = 32
    """Instance ids are 0 … `max_instances` - 1."""
    overflow: InstanceOverflow = "ignore"
    """Replacement of objects with larger ids: unlabelled pixels or background."""

    def __post_init__(self) -> None:
        sides: object = self.size  # a caller without a type checker may pass anything
        is_size = isinstance(sides, tuple) and len(sides) == 2 and all(type(n) is int and n > 0 for n in sides)
        _check_option(is_size, "size", "height and width as positive integers", self.size)
        _check_option(self.label_stride >= 1, "label_stride", "at least 1", self.label_stride)
        _check_option(1 <= self.max_instances <= 255, "max_instances", "1 to 255", self.max_instances)
        _check_option(
            self.overflow in get_args(InstanceOverflow), "overflow", "'ignore' or 'background'", self.overflow
        )
        if self.size[0] % self.label_stride or self.size[1] % self.label_stride:
            size = f"{self.size[0]}×{self.size[1]}"
            raise UserError(f"label_stride: expected a divisor of the size {size}, got {self.label_stride}")

    def crop_scene(self, scene: Scene, box: CropBox, is_flipped: bool = False) -> Scene:
        """Return the sample of a crop."""
        sample = resized_crop(scene, box, self.size, label_stride=self.label_stride, is_flipped=is_flipped)
        if "instance" not in sample.maps:
            return sample
        instances = renumber_instances(sample.maps["instance"], self.max_instances, self.overflow)
        return replace(sample, maps={**sample.maps, "instance": instances})


@dataclass(frozen=True, kw_only=True)
class RandomView(_SampleFormat):
    """The transform for training: a random resized crop with a random horizontal flip."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the fraction of the image's area that a crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width by height of a crop, before it is resized."""
    flip: float = 0.5
    """Probability of a flip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_option(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "two ascending fractions in (0, 1]", self.scale)
        _check_option(0 < self.ratio[0] <= self.ratio[1], "ratio", "two ascending numbers above 0", self.ratio)
        _check_option(0 <= self.flip <= 1, "flip", "a probability", self.flip)

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Return a random view of the scene."""
        return self.crop_scene(scene, *self.draw_crop(scene_size(scene), rng))

    def draw_crop(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[CropBox, bool]:
        """Return the box of a random crop of an image of a height and width, and whether it is flipped."""
        noise = rng.random(4 * MAX_CROP_ATTEMPTS + 1)
        box = random_crop_box(*size, noise[1:].reshape(MAX_CROP_ATTEMPTS, 4), scale=self.scale, ratio=self.ratio)
        return box, bool(noise[0] < self.flip)


@dataclass(frozen=True, kw_only=True)
class CentralView(_SampleFormat):
    """The transform for evaluation: a resized central crop."""

    crop: float = 1.0
    """Sides of the crop relative to the largest that fit. 0.875 is the 224 of 256 pixels that is usual on ImageNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_option(0 < self.crop <= 1, "crop", "a fraction in (0, 1]", self.crop)

    def __call__(self, scene: Scene, rng: np.random.Generator | None = None) -> Scene:
        """Return the central view of the scene; `rng` is not used."""
        return self.crop_scene(scene, *self.draw_crop(scene_size(scene), rng))

    def draw_crop(self, size: tuple[int, int], rng: np.random.Generator | None = None) -> tuple[CropBox, bool]:
        """Return the box of the central crop of an image of a height and width, and False; `rng` is not used."""
        del rng
        return central_crop_box(*size, self.size[1] / self.size[0], self.crop), False


def _check_option(is_valid: bool, option: str, expected: str, got: object) -> None:
    if not is_valid:
        raise UserError(f"{option}: expected {expected}, got {got!r}")


def random_crop_box(
    height: int,
    width: int,
    noise: Float64[np.ndarray, "attempts 4"],
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """Return the first box of random area and aspect ratio that fits; the central one if none does.

    `noise` is uniform in [0, 1): area, aspect ratio, and position across and down for each attempt.
    """
    for size, shape, across, down in noise.tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** shape
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return CropBox(int(down * (height - rows + 1)), int(across * (width - columns + 1)), rows, columns)
    return central_crop_box(height, width, min(max(width / height, ratio[0]), ratio[1]))
