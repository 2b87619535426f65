"""Smooth noise as a sum of cosines with random amplitudes: two products of small matrices, at any size."""

import functools

import numpy as np

from c2fmae.data.generated.arrays import FloatArray, Rng, pixel_centres


def smooth_noise(rng: Rng, y: FloatArray, size: int, rows: int, columns: int, falloff: float) -> FloatArray:
    """Smooth noise about 0 with a spread of about 1, at rows `y` of a picture of that width.

    `rows` and `columns` bound the frequencies; the higher `falloff`, the more the low ones rule.
    """
    amplitudes = rng.standard_normal((rows, columns), np.float32) * _spectrum(rows, columns, falloff)
    values: FloatArray = cosine_basis(y, rows) @ amplitudes @ _column_basis(size, columns)
    return values


def cosine_basis(t: FloatArray, count: int) -> FloatArray:
    """The first cosines at each place of the unit interval: [..., count]."""
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
