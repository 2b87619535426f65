"""Random changes of an image's colours: jitter, greyscale, blur and solarisation, as torchvision and Pillow do them.

Pillow changes the hue about twice as fast as tensors do, and with its arithmetic the colours are those of the papers'
code. The blur is exact, where Pillow's is an approximation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from c2fmae.core.view_options import ColourOptions

Jitter = tuple[tuple[str, float], ...]
"""Names of operations and their factors, in the order in which they are applied."""

_JITTER: dict[str, Callable[[Any, float], Any]] = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
}
_SOLARISE_THRESHOLD = 128
_BLUR_SIGMAS = 4  # radius of the kernel: less than 1e-4 of a Gaussian is further away


class ColourChange(NamedTuple):
    """A change of colours, in the order in which it is made. The default is none."""

    jitter: Jitter = ()
    is_grey: bool = False
    blur_sigma: float | None = None
    """Standard deviation of the blur, in pixels; None for no blur."""
    is_solarised: bool = False


def draw_colour_change(options: ColourOptions, rng: np.random.Generator) -> ColourChange:
    """Return a random change. The number of draws does not depend on the options."""
    has_jitter, is_grey, is_blurred, is_solarised = rng.random(4) < (
        options.jitter_chance,
        options.grey_chance,
        options.blur_chance,
        options.solarise_chance,
    )
    *noise, blur_noise = rng.random(5).tolist()
    jitter = []
    for index in rng.permutation(len(_JITTER)).tolist():
        name, strength = list(_JITTER)[index], options.jitter[index]
        low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
        if strength:
            jitter.append((name, low + (high - low) * noise[index]))
    low, high = options.blur_sigma
    return ColourChange(
        jitter=tuple(jitter) if has_jitter else (),
        is_grey=bool(is_grey),
        blur_sigma=low + (high - low) * blur_noise if is_blurred else None,
        is_solarised=bool(is_solarised),
    )


def change_colours(image: UInt8[Tensor, "3 height width"], change: ColourChange) -> UInt8[Tensor, "3 height width"]:
    """Return the image with changed colours; the image itself if nothing is changed."""
    if change.jitter or change.is_grey:
        pixels = tv.to_pil_image(image)
        for name, factor in change.jitter:
            pixels = _JITTER[name](pixels, factor)
        image = tv.pil_to_tensor(tv.rgb_to_grayscale(pixels, 3) if change.is_grey else pixels)
    if change.blur_sigma is not None:
        image = blur_image(image, change.blur_sigma)
    return tv.solarize(image, _SOLARISE_THRESHOLD) if change.is_solarised else image


def blur_image(image: UInt8[Tensor, "channels height width"], sigma: float) -> UInt8[Tensor, "channels height width"]:
    """Blur an image with a Gaussian of standard deviation `sigma`, in pixels. At its borders it is reflected.

    Multiplication by a matrix for each axis is two to four times as fast as torchvision's convolution at sigma 2.
    """
    height, width = image.shape[-2:]
    matrices = {length: _blur_matrix(length, sigma) for length in {height, width}}
    return (matrices[height] @ image.float() @ matrices[width].T).round_().to(torch.uint8)


def _blur_matrix(length: int, sigma: float) -> Tensor:
    """Return the matrix that blurs the rows of an image of `length` rows."""
    radius = min(math.ceil(_BLUR_SIGMAS * sigma), length - 1)  # as far as an image can be reflected
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    rows = (torch.arange(length)[:, None] + offsets).abs()
    rows = torch.where(rows < length, rows, 2 * (length - 1) - rows)
    return torch.zeros(length, length).scatter_add_(1, rows, (weights / weights.sum()).expand(length, -1))
