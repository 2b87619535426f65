"""From a scene as it is stored to a sample as a model takes it: one cut for the photo and all its maps."""

import math
from dataclasses import dataclass
from typing import Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float64

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import InstanceOverflow
from c2fmae.core.scene import Scene
from c2fmae.data.geometry import CropBox, central_crop_box, resized_crop, scene_size
from c2fmae.data.instance_order import renumber_instances

MAX_CROP_ATTEMPTS = 10


@runtime_checkable
class Transform(Protocol):
    """Makes a sample of a scene; all that is random about it comes from `rng`."""

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Make it."""


@dataclass(frozen=True, kw_only=True)
class _SampleFormat:
    """What every sample looks like."""

    size: tuple[int, int]
    """Height and width of the photo, in pixels."""
    label_stride: int = 1
    """Cells of the id maps are this many pixels wide."""
    max_instances: int = 32
    """Instance ids are 0 … `max_instances` - 1."""
    overflow: InstanceOverflow = "ignore"
    """What objects beyond that become."""

    def __post_init__(self) -> None:
        sides: object = self.size  # whatever a caller without a type checker gives
        is_size = isinstance(sides, tuple) and len(sides) == 2 and all(type(n) is int and n > 0 for n in sides)
        _check_option(is_size, "size", "height and width in whole pixels", self.size)
        _check_option(self.label_stride >= 1, "label_stride", "at least 1", self.label_stride)
        _check_option(1 <= self.max_instances <= 255, "max_instances", "1 to 255", self.max_instances)
        _check_option(
            self.overflow in get_args(InstanceOverflow), "overflow", "'ignore' or 'background'", self.overflow
        )
        if self.size[0] % self.label_stride or self.size[1] % self.label_stride:
            size = f"{self.size[0]}×{self.size[1]}"
            raise UserError(f"label_stride: {self.label_stride} does not divide the size, {size}")

    def _crop_scene(self, scene: Scene, box: CropBox, *, is_flipped: bool = False) -> Scene:
        sample = resized_crop(scene, box, self.size, label_stride=self.label_stride, is_flipped=is_flipped)
        if "instance" not in sample.maps:
            return sample
        instances = renumber_instances(sample.maps["instance"], self.max_instances, self.overflow)
        return Scene(sample.key, {**sample.maps, "instance": instances}, sample.label, sample.label_stride)


@dataclass(frozen=True, kw_only=True)
class RandomView(_SampleFormat):
    """For training: a random crop brought to the size, mirrored half the time."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the photo's area that a crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width by height of a crop, before it is brought to the size."""
    flip: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_option(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "two rising shares in (0, 1]", self.scale)
        _check_option(0 < self.ratio[0] <= self.ratio[1], "ratio", "two rising numbers above 0", self.ratio)
        _check_option(0 <= self.flip <= 1, "flip", "a probability", self.flip)

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Draw a crop and take it."""
        noise = rng.random(4 * MAX_CROP_ATTEMPTS + 1)
        box = random_crop_box(
            *scene_size(scene), noise[1:].reshape(MAX_CROP_ATTEMPTS, 4), scale=self.scale, ratio=self.ratio
        )
        return self._crop_scene(scene, box, is_flipped=bool(noise[0] < self.flip))


@dataclass(frozen=True, kw_only=True)
class CentralView(_SampleFormat):
    """For evaluation: the central part, `crop` of its largest extent, brought to the size."""

    crop: float = 1.0
    """224 of 256 pixels, the custom on ImageNet, is 0.875."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_option(0 < self.crop <= 1, "crop", "a share in (0, 1]", self.crop)

    def __call__(self, scene: Scene, rng: np.random.Generator | None = None) -> Scene:
        """Take the centre; nothing is random about it."""
        del rng
        aspect = self.size[1] / self.size[0]
        return self._crop_scene(scene, central_crop_box(*scene_size(scene), aspect, self.crop))


def _check_option(is_valid: bool, option: str, expected: str, got: object) -> None:
    if not is_valid:
        raise UserError(f"{option}: expected {expected}, got {got!r}")


def random_crop_box(
    height: int,
    width: int,
    noise: Float64[np.ndarray, "tries 4"],
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """Return the first box of a random area and shape that fits; where none of the tries does, the central one.

    Noise, uniform in [0, 1): area, shape, and the place across and down.
    """
    for size, shape, across, down in noise.tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** shape
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return CropBox(int(down * (height - rows + 1)), int(across * (width - columns + 1)), rows, columns)
    return central_crop_box(height, width, min(max(width / height, ratio[0]), ratio[1]))
