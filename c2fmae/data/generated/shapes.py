"""Outlines as signed distances, negative inside, in units of a thing's radius: u runs right, v down."""

import functools
from collections.abc import Callable

import numpy as np

from c2fmae.data.generated.arrays import FloatArray

ShapeFn = Callable[[FloatArray, FloatArray], FloatArray]


def disc(right: float, down: float, radius: float) -> ShapeFn:
    """All within a radius of a place."""
    return lambda u, v: np.sqrt((u - right) ** 2 + (v - down) ** 2) - radius


def oval(right: float, down: float, wide: float, high: float) -> ShapeFn:
    """An ellipse by its half axes."""

    def distance(u: FloatArray, v: FloatArray) -> FloatArray:
        u, v = (u - right) / wide, (v - down) / high
        reach, tiny = u * u + v * v, np.float32(1e-6)  # for the very centre
        slope = np.sqrt((u / wide) ** 2 + (v / high) ** 2)
        nearly: FloatArray = (reach - np.sqrt(reach) - tiny) / (slope + tiny)  # to first order
        return nearly

    return distance


def box(right: float, down: float, wide: float, high: float) -> ShapeFn:
    """A rectangle by its half sides."""
    return lambda u, v: np.maximum(abs(u - right) - wide, abs(v - down) - high)


def ring(right: float, down: float, radius: float, thick: float) -> ShapeFn:
    """A circle drawn that thick to either side."""
    middle = disc(right, down, radius)
    return lambda u, v: abs(middle(u, v)) - thick


def polygon(*corners: tuple[float, float]) -> ShapeFn:
    """A convex polygon, its corners clockwise as seen."""
    edges = []
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(u1 - u0, v1 - v0))
        out = (v1 - v0) / length, (u0 - u1) / length
        edges.append((*out, out[0] * u0 + out[1] * v0))
    return lambda u, v: functools.reduce(np.maximum, (a * u + b * v - c for a, b, c in edges))


def union(*shapes: ShapeFn) -> ShapeFn:
    """What lies in any of them."""
    return lambda u, v: functools.reduce(np.minimum, (shape(u, v) for shape in shapes))


def clip_above(shape: ShapeFn, down: float) -> ShapeFn:
    """What of a shape lies above a height."""
    return lambda u, v: np.maximum(shape(u, v), v - down)


def mirror(shape: ShapeFn) -> ShapeFn:
    """The right half of a shape, mirrored to the left."""
    return lambda u, v: shape(abs(u), v)
