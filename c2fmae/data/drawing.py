"""What generated scenes are made of: textures of stuff, outlines of things, patterns on them, and light.

All of it is defined on the unit square and sampled at pixel centres, so a scene looks the same at every size.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Rng = np.random.Generator
Colour = tuple[float, float, float]
Texture = Callable[[Rng, Array, Array], Array]
Shape = Callable[[Array, Array], Array]
Pattern = Callable[[Array, Array], Array]

_LIGHT = (-0.5, -0.6)  # where it comes from, in x and y: the upper left


def unit(values: Array) -> Array:
    """Hold values to [0, 1]."""
    held: Array = np.clip(values, 0, 1)
    return held


def noise(rng: Rng, y: Array, x: Array, rows: int, columns: int, octaves: int = 1) -> Array:
    """Smooth noise in [0, 1], `rows` × `columns` cells to the unit square; each further octave halves its scale."""
    total = np.zeros((len(y), len(x)), np.float32)
    for octave in range(octaves):
        cells = (rows << octave, columns << octave)
        down, across = (_hats(t, count) for t, count in zip((y, x), cells, strict=True))
        total += down @ rng.random((cells[0] + 1, cells[1] + 1), np.float32) @ across.T / 2**octave
    return total / (2 - 0.5 ** (octaves - 1))


def _hats(t: Array, cells: int) -> Array:
    """The weight of each of the `cells` + 1 grid lines at each place; a row adds up to 1."""
    hat = unit(1 - abs(t[:, None] * cells - np.arange(cells + 1, dtype=np.float32)))
    return hat * hat * (3 - 2 * hat)


def relief(height: Array) -> Array:
    """How much light a surface catches, its height in pixels: 0 turned away from it, 0.79 level, 1 facing it."""
    down, across = np.gradient(height)
    lambert = (1 + _LIGHT[0] * across + _LIGHT[1] * down) / np.sqrt(1 + across**2 + down**2)
    return unit(lambert / math.hypot(1, *_LIGHT))


def _sky(rng: Rng, y: Array, x: Array) -> Array:
    return unit(2.6 * noise(rng, y, x, 5, 3, 4) - 1.1) + 0.5 * y[:, None]


def _rock(rng: Rng, y: Array, x: Array) -> Array:
    return 1.3 * relief(0.25 * len(y) * abs(noise(rng, y, x, 5, 4, 4) - 0.5)) - 0.3


def _brick(rng: Rng, y: Array, x: Array) -> Array:
    courses = int(rng.integers(9, 14))
    v = y[:, None] * courses
    u = x[None] * courses / 2 + v.astype(int) % 2 / 2
    joint = np.minimum(0.5 - abs(v % 1 - 0.5), 2 * (0.5 - abs(u % 1 - 0.5)))
    tone = rng.random((15, 9), np.float32)[v.astype(int), u.astype(int)]
    wall: Array = np.where(joint < 0.09, 1, 0.55 * tone)
    return wall + 0.2 * noise(rng, y, x, 60, 60)


def _grass(rng: Rng, y: Array, x: Array) -> Array:
    return 0.9 * noise(rng, y, x, 14, 90) + 0.9 * noise(rng, y, x, 4, 4, 2) - 0.45


def _sand(rng: Rng, y: Array, x: Array) -> Array:
    crests = np.sin(2 * np.pi * (16 * y[:, None] + 3 * noise(rng, y, x, 2, 3, 2)))
    return 0.5 + 0.22 * crests + 0.5 * (noise(rng, y, x, 80, 80) - 0.5)


def _water(rng: Rng, y: Array, x: Array) -> Array:
    return unit(3 * noise(rng, y, x, 36, 7, 2) - 1.2) ** 2 + 0.3 * y[:, None]


# Name, by semantic id from the top of a picture to its bottom: texture, and the colours of its lows and highs.
STUFF: dict[str, tuple[Texture, Colour, Colour]] = {
    "sky": (_sky, (0.30, 0.53, 0.84), (0.93, 0.95, 0.98)),
    "rock": (_rock, (0.20, 0.19, 0.21), (0.70, 0.66, 0.62)),
    "brick": (_brick, (0.47, 0.17, 0.12), (0.79, 0.62, 0.52)),
    "grass": (_grass, (0.10, 0.27, 0.07), (0.52, 0.72, 0.24)),
    "sand": (_sand, (0.62, 0.48, 0.28), (0.96, 0.86, 0.63)),
    "water": (_water, (0.05, 0.25, 0.38), (0.60, 0.86, 0.90)),
}


def _star(points: int, inner: float) -> Shape:
    """A star whose tips lie at radius 1 and whose notches at `inner`; a regular polygon at cos(π / points)."""
    half = np.pi / points
    edge = np.array([1 - inner * np.cos(half), inner * np.sin(half)], np.float32)
    along, across = edge / np.hypot(*edge)

    def distance(u: Array, v: Array) -> Array:
        angle = abs((np.arctan2(v, u) + half) % (2 * half) - half)  # from the nearest tip
        radius = np.hypot(u, v)
        beyond: Array = (radius * np.cos(angle) - 1) * across + radius * np.sin(angle) * along
        return beyond

    return distance


def _cross(u: Array, v: Array) -> Array:
    distance: Array = np.maximum(np.maximum(abs(u), abs(v)) - 1, np.minimum(abs(u), abs(v)) - 0.34)
    return distance


# Signed distance to the outline in units of the object's radius: negative inside.
KINDS: dict[str, Shape] = {
    "disc": lambda u, v: np.hypot(u, v) - 0.9,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.72) - 0.26,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.55, v)),
    "triangle": _star(3, 0.5),
    "square": _star(4, 0.5**0.5),
    "star": _star(5, 0.42),
    "cross": _cross,
    "flower": lambda u, v: np.hypot(u, v) - 0.78 - 0.2 * np.cos(6 * np.arctan2(v, u)),
}

# Waves over an object, in units of its radius: a pattern is light where they are positive.
PATTERNS: dict[str, Pattern] = {
    "plain": lambda u, _: np.full_like(u, -1),
    "stripes": lambda u, _: np.sin(9 * u),
    "checks": lambda u, v: np.sin(7 * u) * np.sin(7 * v),
    "dots": lambda u, v: np.cos(9 * u) + np.cos(9 * v) - 0.9,
    "waves": lambda u, v: np.sin(9 * u + 1.5 * np.sin(5 * v)),
}


def random_colour(rng: Rng) -> Array:
    """Return an RGB colour of any hue, neither grey nor dark."""
    hue, saturation, value = rng.uniform((0, 0.55, 0.65), (6, 0.95, 1.0))
    k = (np.array([5, 3, 1]) + hue) % 6
    colour: Array = value * (1 - saturation * unit(np.minimum(k, 4 - k)))
    return colour.astype(np.float32)
