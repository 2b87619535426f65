"""Smooth noise as a sum of cosines with random amplitudes: two products of small matrices, for any size in pixels."""

import functools

import numpy as np

from c2fmae.data.generated.arrays import FloatArray, Rng, pixel_centres


def smooth_noise(rng: Rng, y: FloatArray, size: int, rows: int, columns: int, falloff: float) -> FloatArray:
    """Return smooth noise of mean 0 and deviation of about 1 at the rows `y` of an image of width `size`.

    `rows` and `columns` are the numbers of frequencies; a higher `falloff` reduces the high ones.
    """
    amplitudes = rng.standard_normal((rows, columns), np.float32) * _spectrum(rows, columns, falloff)
    values: FloatArray = cosine_basis(y, rows) @ amplitudes @ _column_basis(size, columns)
    return values


def cosine_basis(t: FloatArray, count: int) -> FloatArray:
    """Return the first cosines at each point of the unit interval: [..., count]."""
    cosines: FloatArray = np.cos(t[..., None] * _frequencies(count))
    return cosines


@functools.cache
def _frequencies(count: int) -> FloatArray:
    return np.float32(np.pi) * np.arange(count, dtype=np.float32)


@functools.cache
def _column_basis(size: int, count: int) -> FloatArray:
    return np.ascontiguousarray(cosine_basis(pixel_centres(size), count).T)


@functools.cache
def _spectrum(rows: int, columns: int, falloff: float) -> FloatArray:
    down, across = np.ogrid[:rows, :columns]
    frequency = np.hypot(down / rows, across / columns) * min(rows, columns)
    amplitude = (0.5 + frequency) ** -falloff
    amplitude[0, 0] = 0
    scaled: FloatArray = (amplitude * 2 / np.sqrt((amplitude**2).sum())).astype(np.float32)
    return scaled
