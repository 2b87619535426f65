"""Photometric distortion of images of bytes: brightness, contrast, saturation and hue, as mmsegmentation draws them.

Every step returns bytes. A conversion to HSV has OpenCV's resolution: hues of two degrees, saturations of a byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.errors import UserError

_HUES = 180  # steps of two degrees
_SECTOR = 30  # a sixth of the circle: in it, one channel rises or falls while the other two are constant
_FRACTION_BITS = 8


@dataclass(frozen=True, kw_only=True)
class PhotometricDistortion:
    """A random distortion; each of its four steps is taken with the same probability.

    Contrast changes before saturation and hue in half of the images, and after them in the others. Images of other than
    3 channels have neither saturation nor hue.
    """

    brightness: float = 32
    """Largest value that is added to or subtracted from all pixels, of 255."""
    contrast: tuple[float, float] = (0.5, 1.5)
    """Range of the factor of all pixels."""
    saturation: tuple[float, float] = (0.5, 1.5)
    """Range of the factor of the saturation."""
    hue: int = 18
    """Largest rotation of the hue, in steps of two degrees."""
    probability: float = 0.5
    """Probability of each of the four steps."""

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UserError(f"{name}: expected two ascending factors from 0, got {getattr(self, name)}")
        if not 0 <= self.probability <= 1:
            raise UserError(f"probability: expected 0 to 1, got {self.probability}")

    def __call__(
        self, image: UInt8[Tensor, "channels height width"], rng: np.random.Generator
    ) -> UInt8[Tensor, "channels height width"]:
        """Return a distorted image; the number of draws from `rng` does not depend on their values."""
        chances, values = rng.random((2, 5)).tolist()
        brightens, contrasts, saturates, rotates = (chance < self.probability for chance in chances[:4])
        contrast_first = chances[4] < 0.5
        change_contrast = _linear_table(factor=_interpolate(self.contrast, values[1]))
        if brightens:
            image = map_bytes(image, _linear_table(shift=_interpolate((-self.brightness, self.brightness), values[0])))
        if contrasts and contrast_first:
            image = map_bytes(image, change_contrast)
        if len(image) == 3 and (saturates or rotates):
            saturation = _interpolate(self.saturation, values[2]) if saturates else 1.0
            rotation = int(values[3] * 2 * self.hue) - self.hue if rotates else 0
            image = change_saturation_and_hue(image, saturation, rotation)
        if contrasts and not contrast_first:
            image = map_bytes(image, change_contrast)
        return image


def _interpolate(bounds: Sequence[float], fraction: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * fraction


def _linear_table(*, factor: float = 1, shift: float = 0) -> UInt8[np.ndarray, "256"]:
    """Return ⌊factor · value + shift⌋ of every byte, clipped to bytes."""
    table: UInt8[np.ndarray, 256] = (np.arange(256) * factor + shift).clip(0, 255).astype(np.uint8)
    return table


def map_bytes(
    image: UInt8[Tensor, "channels height width"], table: UInt8[np.ndarray, "256"]
) -> UInt8[Tensor, "channels height width"]:
    """Return the image with every value replaced by its entry in a table."""
    # bytes.translate takes half of the time of indexing an array.
    mapped = bytearray(image.numpy().tobytes().translate(table.tobytes()))
    return torch.frombuffer(mapped, dtype=torch.uint8).view(image.shape)


def change_saturation_and_hue(
    image: UInt8[Tensor, "3 height width"], factor: float, rotation: int
) -> UInt8[Tensor, "3 height width"]:
    """Multiply the saturation, clip it to a byte, and rotate the hue by steps of two degrees.

    In HSV, the value v is the largest channel, and the saturation s is 255 / v times the distance of the smallest
    channel from it. Each channel is v · (1 - s / 255 · w), where w depends on the hue only: 0 within 60 degrees of the
    channel's own hue, 1 beyond 120 degrees, and linear between.
    """
    red, green, blue = planes = image.numpy()
    value = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    distance = value - lowest
    hue = _compute_hue(planes, value, lowest).tobytes()
    depth = _look_up(_depth_table(factor), value, distance)
    changed = np.empty_like(planes)
    for channel in range(3):
        weight = np.frombuffer(hue.translate(_weight_table(channel, rotation)), np.uint8).astype(np.uint16)
        weight = weight.reshape(value.shape)
        weight *= depth
        weight += 1 << (_FRACTION_BITS - 1)
        weight >>= _FRACTION_BITS
        np.subtract(value, weight.astype(np.uint8), out=changed[channel])
    return torch.from_numpy(changed)


def _compute_hue(
    planes: UInt8[np.ndarray, "3 height width"],
    value: UInt8[np.ndarray, "height width"],
    lowest: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """Return hues plus one sector, so that those of red below 0 are bytes too: 0 to 180."""
    red, green, blue = planes
    is_red, is_green = red == value, green == value
    red_bits = -is_red.view(np.uint8)  # 255 where true: bits select faster than `np.where`
    green_bits = -is_green.view(np.uint8) & ~red_bits
    blue_bits = ~(red_bits | green_bits)
    middle_height = red + green + blue - value - lowest - lowest  # exact, although the sums wrap
    offset = _look_up(_OFFSETS, value - lowest, middle_height)
    is_below = (red_bits & -(green < blue).view(np.uint8)) | (green_bits & -(blue < red).view(np.uint8))
    is_below |= blue_bits & -(red < green).view(np.uint8)
    hue: UInt8[np.ndarray, "height width"] = (offset ^ is_below) - is_below  # -offset where below
    hue += _SECTOR + (green_bits & (2 * _SECTOR)) + (blue_bits & (4 * _SECTOR))
    return hue


def _look_up(
    table: np.ndarray, high: UInt8[np.ndarray, "height width"], low: UInt8[np.ndarray, "height width"]
) -> np.ndarray:
    """Return the entries 256 · high + low of a table."""
    index = high.astype(np.uint16)
    index <<= 8
    index |= low
    # With indices that need no check, `take` is faster.
    return table.take(index.astype(np.intp), mode="clip")


def _offset_table() -> UInt8[np.ndarray, "65536"]:
    """Return the offset of the hue within a sector by distance and height of the middle channel above the lowest."""
    distance, height = np.ogrid[:256, :256]
    position = np.minimum(height / np.maximum(distance, 1), 1)
    table: UInt8[np.ndarray, 65536] = np.floor(_SECTOR * position + 0.5).astype(np.uint8).ravel()
    return table


def _saturation_table() -> UInt8[np.ndarray, "65536"]:
    """Return the saturation by value and distance."""
    value, distance = np.ogrid[:256, :256]
    ratio = np.minimum(distance / np.maximum(value, 1), 1)
    table: UInt8[np.ndarray, 65536] = np.floor(255 * ratio + 0.5).astype(np.uint8).ravel()
    return table


_OFFSETS = _offset_table()
_SATURATIONS = _saturation_table()
_VALUES = np.arange(256, dtype=np.float32).repeat(256)


def _depth_table(factor: float) -> np.ndarray:
    """Return v · s / 255 by value and distance after a change of the saturation, for weights of 0 to a sector."""
    saturation = _linear_table(factor=factor)[_SATURATIONS]
    depth: np.ndarray = np.rint(_VALUES * saturation * ((1 << _FRACTION_BITS) / (255 * _SECTOR))).astype(np.uint16)
    return depth


def _weight_table(channel: int, rotation: int) -> bytes:
    """Return the weight of a channel by the byte of `_compute_hue`."""
    own_hue = 2 * _SECTOR * channel
    angle = (np.arange(256) - _SECTOR + rotation - own_hue + _HUES // 2) % _HUES - _HUES // 2
    return (np.abs(angle) - _SECTOR).clip(0, _SECTOR).astype(np.uint8).tobytes()
