"""Shapes as signed distances, negative inside, in units of a thing's radius; u points right, v down."""

import functools
from collections.abc import Callable

import numpy as np

from c2fmae.data.generated.arrays import FloatArray

ShapeFn = Callable[[FloatArray, FloatArray], FloatArray]


def disc(right: float, down: float, radius: float) -> ShapeFn:
    """Return a disc with its centre at (right, down)."""
    return lambda u, v: np.sqrt((u - right) ** 2 + (v - down) ** 2) - radius


def oval(right: float, down: float, wide: float, high: float) -> ShapeFn:
    """Return an ellipse with its centre at (right, down) and the half axes `wide` and `high`."""

    def distance(u: FloatArray, v: FloatArray) -> FloatArray:
        u, v = (u - right) / wide, (v - down) / high
        reach, tiny = u * u + v * v, np.float32(1e-6)  # against division by zero at the centre
        slope = np.sqrt((u / wide) ** 2 + (v / high) ** 2)
        approximate: FloatArray = (reach - np.sqrt(reach) - tiny) / (slope + tiny)  # to first order
        return approximate

    return distance


def box(right: float, down: float, wide: float, high: float) -> ShapeFn:
    """Return a rectangle with its centre at (right, down) and the half sides `wide` and `high`."""
    return lambda u, v: np.maximum(abs(u - right) - wide, abs(v - down) - high)


def ring(right: float, down: float, radius: float, thick: float) -> ShapeFn:
    """Return a circle whose line extends by `thick` to either side."""
    middle = disc(right, down, radius)
    return lambda u, v: abs(middle(u, v)) - thick


def polygon(*corners: tuple[float, float]) -> ShapeFn:
    """Return a convex polygon with corners (u, v) in clockwise order."""
    edges = []
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(u1 - u0, v1 - v0))
        out = (v1 - v0) / length, (u0 - u1) / length
        edges.append((*out, out[0] * u0 + out[1] * v0))
    return lambda u, v: functools.reduce(np.maximum, (a * u + b * v - c for a, b, c in edges))


def union(*shapes: ShapeFn) -> ShapeFn:
    """Return the union of shapes."""
    return lambda u, v: functools.reduce(np.minimum, (shape(u, v) for shape in shapes))


def clip_above(shape: ShapeFn, down: float) -> ShapeFn:
    """Return the part of a shape above the height `down`."""
    return lambda u, v: np.maximum(shape(u, v), v - down)


def mirror(shape: ShapeFn) -> ShapeFn:
    """Return the right half of a shape and its mirror image on the left."""
    return lambda u, v: shape(abs(u), v)
