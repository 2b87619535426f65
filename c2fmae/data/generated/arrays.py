"""Values over the unit square, where all of a scene is defined, so that it looks the same at any size."""

import functools

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

Array = NDArray[np.floating]
Picture = Float32[np.ndarray, "3 height width"]
Ids = UInt8[np.ndarray, "height width"]
Rng = np.random.Generator


@functools.cache
def axis_of(size: int) -> Array:
    """The pixel centres along a side of the unit square."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def unit(values: Array) -> Array:
    """Hold values to [0, 1]."""
    held: Array = np.maximum(values, 0)
    return np.minimum(held, 1, out=held)


def mix(below: Array, above: Array, share: Array) -> None:
    """Let that share of what is above hide what is below, in place."""
    step = above - below
    step *= share
    below += step
