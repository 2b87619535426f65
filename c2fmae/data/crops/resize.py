"""Sizes to which whole images are resized for detection, and the resize of a test."""

from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.data.geometry import resized_crop_image


def fit_sides(size: tuple[float, float], short_side: float, max_side: float) -> tuple[int, int]:
    """Return height and width of an image whose shorter side is resized to `short_side`, or its longer to `max_side`.

    The smaller of the two scales is used, so that both are upper limits.

    >>> fit_sides((480, 640), 800, 1333), fit_sides((300, 900), 800, 1333)
    ((800, 1067), (444, 1333))
    """
    scale = min(short_side / min(size), max_side / max(size))
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def resize_to_sides(
    image: UInt8[Tensor, "channels height width"], short_side: int, max_side: int
) -> tuple[UInt8[Tensor, "channels rows columns"], tuple[float, float]]:
    """Return an image that is resized as by `fit_sides`, and by how much: the factors of its height and its width.

    For a square canvas, use its side for both limits. The factors differ a little, because sides are whole pixels.
    """
    height, width = image.shape[1:]
    size = fit_sides((height, width), short_side, max_side)
    return resized_crop_image(image, CropBox(0, 0, height, width), size), (size[0] / height, size[1] / width)
