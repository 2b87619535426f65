"""Smooth noise as a sum of cosines with random amplitudes: two products of small matrices, at any size."""

import functools

import numpy as np

from c2fmae.data.generated.arrays import Array, Rng, axis_of


def noise(rng: Rng, y: Array, size: int, rows: int, columns: int, fall: float) -> Array:
    """Smooth noise about 0 with a spread of about 1, at rows `y` of a picture of that width.

    `rows` and `columns` bound the frequencies; the higher `fall`, the more the low ones rule.
    """
    amplitudes = rng.standard_normal((rows, columns), np.float32) * _spectrum(rows, columns, fall)
    values: Array = waves(y, rows) @ amplitudes @ _across(size, columns)
    return values


def waves(t: Array, count: int) -> Array:
    """The first cosines at each place of the unit interval: [..., count]."""
    cosines: Array = np.cos(t[..., None] * _frequencies(count))
    return cosines


@functools.cache
def _frequencies(count: int) -> Array:
    return np.float32(np.pi) * np.arange(count, dtype=np.float32)


@functools.cache
def _across(size: int, count: int) -> Array:
    return np.ascontiguousarray(waves(axis_of(size), count).T)


@functools.cache
def _spectrum(rows: int, columns: int, fall: float) -> Array:
    down, across = np.ogrid[:rows, :columns]
    frequency = np.hypot(down / rows, across / columns) * min(rows, columns)
    amplitude = (0.5 + frequency) ** -fall
    amplitude[0, 0] = 0
    scaled: Array = (amplitude * 2 / np.sqrt((amplitude**2).sum())).astype(np.float32)
    return scaled
