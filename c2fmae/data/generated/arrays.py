"""Values over the unit square, where all of a scene is defined, so that it looks the same at any size."""

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
    """The pixel centres along a side of the unit square."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def clip_to_unit(values: FloatArray) -> FloatArray:
    """Hold values to [0, 1]."""
    held: FloatArray = np.maximum(values, 0)
    return np.minimum(held, 1, out=held)


def lerp_inplace(start: FloatArray, end: FloatArray, weight: FloatArray) -> None:
    """Let that share of what is above hide what is below, in place."""
    step = end - start
    step *= weight
    start += step
