"""Arrays over the unit square, on which scenes are defined independently of the size in pixels."""

import functools

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
RgbArray = Float32[np.ndarray, "3 height width"]
IdGrid = UInt8[np.ndarray, "height width"]
Rng = np.random.Generator


@functools.cache
def pixel_centres(size: int) -> FloatArray:
    """Return the pixel centres along a side of the unit square."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def clip_to_unit(values: FloatArray) -> FloatArray:
    """Clip values to [0, 1]."""
    clipped: FloatArray = np.maximum(values, 0)
    return np.minimum(clipped, 1, out=clipped)


def lerp_inplace(start: FloatArray, end: FloatArray, weight: FloatArray) -> None:
    """Interpolate linearly from `start` (weight 0) to `end` (weight 1), in place in `start`."""
    step = end - start
    step *= weight
    start += step
