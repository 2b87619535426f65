"""What generated scenes are made of: textures of stuff, outlines of things and the ways in which a picture is drawn.

All of it is defined on the unit square and sampled at pixel centres, so a scene looks the same at every size.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Rng = np.random.Generator
Colour = tuple[float, float, float]
Texture = Callable[[Rng, Array, int], Array]
Shape = Callable[[Array, Array], Array]
Pattern = Callable[[Array, Array], Array]
Role = Literal["body", "second", "dark", "light"]


def _colours(names: str) -> Array:
    channels = np.frombuffer(bytes.fromhex(names), np.uint8).astype(np.float32) / 255
    return channels.reshape(-1, 3)


def unit(values: Array) -> Array:
    """Hold values to [0, 1]."""
    held: Array = np.maximum(values, 0)
    return np.minimum(held, 1, out=held)


def mix(below: Array, above: Array, share: Array) -> None:
    """Let that share of what is above hide what is below, in place."""
    step = above - below
    step *= share
    below += step


@functools.cache
def axis_of(size: int) -> Array:
    """The pixel centres along a side of the unit square."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


# Smooth noise is a sum of cosines with random amplitudes: two products of small matrices.


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


def noise(rng: Rng, y: Array, size: int, rows: int, columns: int, fall: float) -> Array:
    """Smooth noise about 0 with a spread of about 1, at rows `y` of a picture of that width.

    `rows` and `columns` bound the frequencies; the higher `fall`, the more the low ones rule.
    """
    amplitudes = rng.standard_normal((rows, columns), np.float32) * _spectrum(rows, columns, fall)
    values: Array = waves(y, rows) @ amplitudes @ _across(size, columns)
    return values


def _sky(rng: Rng, y: Array, size: int) -> Array:
    clouds = unit(noise(rng, y, size, 14, 7, 1.6) - 0.15)
    return 0.75 * clouds + 0.55 * y[:, None]


def _forest(rng: Rng, y: Array, size: int) -> Array:
    return 0.42 + 0.22 * noise(rng, y, size, 40, 40, 0.4) + 0.14 * noise(rng, y, size, 6, 6, 1)


def _rock(rng: Rng, y: Array, size: int) -> Array:
    clefts = unit(1 - 2.2 * abs(noise(rng, y, size, 20, 14, 0.9)))
    return 0.68 + 0.12 * noise(rng, y, size, 40, 40, 0.4) - 0.45 * clefts


def _brick(rng: Rng, y: Array, size: int) -> Array:
    courses = float(rng.uniform(11, 17))
    course, place = _cells(y * courses), _cells(axis_of(size) * courses / 2)
    shifted = _cells(axis_of(size) * courses / 2 + 0.5)
    tones, is_odd = 0.3 + 0.45 * rng.random((18, 10), np.float32), course[0] % 2
    tone = np.stack([tones[:, place[0]], tones[:, shifted[0]]])[is_odd, course[0]]
    upright = np.stack([place[1], shifted[1]]) < 0.06
    wall: Array = np.where(upright[is_odd] | (course[1] < 0.12)[:, None], np.float32(0.95), tone)
    return wall


def _wall(rng: Rng, y: Array, size: int) -> Array:
    count = rng.uniform(9, 16)
    x = axis_of(size)
    broad = 0.16 * np.sign(np.sin(np.float32(2 * np.pi * count) * x))
    sprigs = np.outer(np.cos(np.float32(4 * np.pi * count) * y), np.cos(np.float32(2 * np.pi * count) * x))
    paper: Array = 0.6 + broad + 0.25 * unit(2 * sprigs - 1)
    return paper


def _wood(rng: Rng, y: Array, size: int) -> Array:
    board, within = _cells(y * 7)
    grain = noise(rng, y, size, 70, 5, 0.5)
    tone = 0.5 + 0.22 * (rng.random(8, np.float32)[board] - 0.5) - np.float32(0.45) * (within < 0.07)
    return 0.12 * grain + tone[:, None]


def _pavement(rng: Rng, y: Array, size: int) -> Array:
    (row, down), (column, across) = _cells(y * 6), _cells(axis_of(size) * 6)
    slabs = 0.5 + 0.3 * rng.random((7, 7), np.float32)
    joints = (down < 0.06)[:, None] | (across < 0.04)
    laid: Array = slabs[row][:, column] - np.float32(0.3) * joints + 0.07 * noise(rng, y, size, 40, 60, 0)
    return laid


def _grass(rng: Rng, y: Array, size: int) -> Array:
    return 0.45 + 0.17 * noise(rng, y, size, 16, 90, 0.2) + 0.17 * noise(rng, y, size, 5, 5, 1)


def _sand(rng: Rng, y: Array, size: int) -> Array:
    ripples = np.sin(70 * y[:, None] + 2.2 * noise(rng, y, size, 5, 6, 1))
    return 0.55 + 0.16 * ripples + 0.07 * noise(rng, y, size, 60, 60, 0)


def _snow(rng: Rng, y: Array, size: int) -> Array:
    return 0.72 + 0.2 * noise(rng, y, size, 9, 4, 1) + 0.05 * noise(rng, y, size, 60, 60, 0)


def _water(rng: Rng, y: Array, size: int) -> Array:
    glints = unit(noise(rng, y, size, 44, 10, 0.3) - 0.5)
    return 0.3 + 0.55 * glints + 0.14 * noise(rng, y, size, 8, 4, 1)


def _cells(t: Array) -> tuple[NDArray[np.intp], Array]:
    """Which cell of unit length each place lies in, and how far into it."""
    cell = t.astype(np.intp)
    return cell, t - cell.astype(np.float32)


@dataclass(frozen=True)
class Stuff:
    """A texture between two colours, and how its upper edge runs: its height, and bends across the picture."""

    texture: Texture
    low: Colour
    high: Colour
    edge: float = 0.0
    bends: int = 4
    is_stepped: bool = False


STUFF: dict[str, Stuff] = {
    "sky": Stuff(_sky, (0.36, 0.60, 0.86), (0.98, 0.96, 0.92)),
    "forest": Stuff(_forest, (0.06, 0.20, 0.17), (0.38, 0.56, 0.33), 0.022, 26),
    "rock": Stuff(_rock, (0.27, 0.26, 0.32), (0.74, 0.70, 0.68), 0.055, 12),
    "brick": Stuff(_brick, (0.52, 0.22, 0.17), (0.88, 0.70, 0.58), 0.05, 7, is_stepped=True),
    "wall": Stuff(_wall, (0.55, 0.62, 0.62), (0.95, 0.92, 0.84)),
    "wood": Stuff(_wood, (0.36, 0.21, 0.12), (0.82, 0.60, 0.38)),
    "pavement": Stuff(_pavement, (0.35, 0.36, 0.39), (0.80, 0.78, 0.75)),
    "grass": Stuff(_grass, (0.16, 0.36, 0.14), (0.68, 0.78, 0.36), 0.02, 5),
    "sand": Stuff(_sand, (0.72, 0.57, 0.38), (0.98, 0.88, 0.68), 0.02, 5),
    "snow": Stuff(_snow, (0.60, 0.70, 0.84), (0.99, 0.99, 1.00), 0.025, 5),
    "water": Stuff(_water, (0.08, 0.32, 0.46), (0.70, 0.90, 0.92)),
}
"""By name, in the order of their semantic ids."""


# Outlines are signed distances, negative inside, in units of a thing's radius: u runs right, v down.


def _disc(right: float, down: float, radius: float) -> Shape:
    return lambda u, v: np.sqrt((u - right) ** 2 + (v - down) ** 2) - radius


def _oval(right: float, down: float, wide: float, high: float) -> Shape:
    def distance(u: Array, v: Array) -> Array:
        u, v = (u - right) / wide, (v - down) / high
        reach, tiny = u * u + v * v, np.float32(1e-6)  # for the very centre
        slope = np.sqrt((u / wide) ** 2 + (v / high) ** 2)
        nearly: Array = (reach - np.sqrt(reach) - tiny) / (slope + tiny)  # to first order
        return nearly

    return distance


def _box(right: float, down: float, wide: float, high: float) -> Shape:
    return lambda u, v: np.maximum(abs(u - right) - wide, abs(v - down) - high)


def _ring(right: float, down: float, radius: float, thick: float) -> Shape:
    disc = _disc(right, down, radius)
    return lambda u, v: abs(disc(u, v)) - thick


def _gon(*corners: tuple[float, float]) -> Shape:
    """A convex polygon, its corners clockwise as seen."""
    edges = []
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(u1 - u0, v1 - v0))
        out = (v1 - v0) / length, (u0 - u1) / length
        edges.append((*out, out[0] * u0 + out[1] * v0))
    return lambda u, v: functools.reduce(np.maximum, (a * u + b * v - c for a, b, c in edges))


def _any(*shapes: Shape) -> Shape:
    return lambda u, v: functools.reduce(np.minimum, (shape(u, v) for shape in shapes))


def _above(shape: Shape, down: float) -> Shape:
    return lambda u, v: np.maximum(shape(u, v), v - down)


def _both_sides(shape: Shape) -> Shape:
    return lambda u, v: shape(abs(u), v)


Parts = tuple[tuple[Shape, Role], ...]

KINDS: dict[str, Parts] = {
    "house": (
        (_box(0, 0.4, 0.72, 0.52), "body"),
        (_box(0.48, -0.62, 0.13, 0.3), "dark"),
        (_gon((-1, -0.1), (0, -0.95), (1, -0.1)), "second"),
        (_box(-0.3, 0.58, 0.17, 0.34), "dark"),
        (_box(0.3, 0.36, 0.2, 0.2), "light"),
    ),
    "fir": (
        (
            _any(
                _gon((-0.42, -0.35), (0, -1.05), (0.42, -0.35)),
                _gon((-0.62, 0.18), (0, -0.7), (0.62, 0.18)),
                _gon((-0.8, 0.72), (0, -0.3), (0.8, 0.72)),
            ),
            "body",
        ),
        (_box(0, 0.86, 0.13, 0.16), "dark"),
    ),
    "car": (
        (
            _any(_box(0, 0.24, 1.0, 0.26), _gon((-0.72, 0.05), (-0.45, -0.45), (0.3, -0.45), (0.62, 0.05))),
            "body",
        ),
        (_gon((-0.5, -0.04), (-0.35, -0.33), (0.22, -0.33), (0.42, -0.04)), "light"),
        (_any(_disc(-0.55, 0.5, 0.26), _disc(0.55, 0.5, 0.26)), "dark"),
        (_any(_disc(-0.55, 0.5, 0.11), _disc(0.55, 0.5, 0.11)), "second"),
    ),
    "boat": (
        (_gon((0.02, -1.0), (0.85, 0.3), (0.02, 0.3)), "body"),
        (_gon((-0.02, -0.8), (-0.02, 0.3), (-0.66, 0.3)), "light"),
        (_box(0, -0.25, 0.05, 0.75), "dark"),
        (_gon((-0.95, 0.42), (0.95, 0.42), (0.6, 0.9), (-0.6, 0.9)), "second"),
    ),
    "fish": (
        (_oval(-0.15, 0, 0.82, 0.5), "body"),
        (_any(_gon((0.42, 0), (1.05, -0.5), (1.05, 0.5)), _gon((-0.2, -0.4), (0.3, -0.72), (0.25, -0.35))), "second"),
        (_disc(-0.58, -0.1, 0.15), "light"),
        (_disc(-0.6, -0.1, 0.08), "dark"),
    ),
    "duck": (
        (
            _any(_oval(0.12, 0.38, 0.78, 0.48), _disc(-0.42, -0.36, 0.38), _gon((0.5, 0.2), (1.05, -0.2), (0.9, 0.45))),
            "body",
        ),
        (_gon((-1.05, -0.22), (-0.72, -0.46), (-0.72, -0.14)), "second"),
        (_oval(0.3, 0.32, 0.4, 0.22), "second"),
        (_disc(-0.52, -0.44, 0.08), "dark"),
    ),
    "mushroom": (
        (_above(_oval(0, 0.08, 0.98, 0.95), 0.1), "body"),
        (_gon((-0.24, 0.1), (0.24, 0.1), (0.34, 0.9), (-0.34, 0.9)), "light"),
        (_any(_disc(-0.45, -0.2, 0.16), _disc(0.1, -0.5, 0.18), _disc(0.52, -0.1, 0.14)), "second"),
    ),
    "balloon": (
        (_any(_disc(0, -0.32, 0.7), _gon((-0.58, 0.06), (0.58, 0.06), (0.16, 0.6), (-0.16, 0.6))), "body"),
        (_any(_box(-0.13, 0.66, 0.025, 0.1), _box(0.13, 0.66, 0.025, 0.1)), "dark"),
        (_box(0, 0.86, 0.19, 0.14), "second"),
    ),
    "mug": (
        (_any(_box(-0.18, 0.12, 0.62, 0.74), _ring(0.5, 0.1, 0.36, 0.11)), "body"),
        (_box(-0.18, 0.12, 0.62, 0.14), "second"),
        (_oval(-0.18, -0.62, 0.62, 0.17), "light"),
        (_oval(-0.18, -0.6, 0.5, 0.11), "dark"),
    ),
    "flower": (
        (
            _both_sides(
                _any(
                    _disc(0, -0.86, 0.24),
                    _disc(0.4, -0.62, 0.24),
                    _disc(0.4, -0.18, 0.24),
                    _disc(0, 0.04, 0.24),
                    _disc(0, -0.4, 0.4),
                )
            ),
            "body",
        ),
        (_any(_above(_box(0, 0.6, 0.06, 0.4), 1), _oval(0.26, 0.6, 0.26, 0.11), _oval(-0.24, 0.74, 0.24, 0.1)), "dark"),
        (_disc(0, -0.4, 0.2), "second"),
    ),
    "butterfly": (
        (_both_sides(_any(_oval(0.55, -0.36, 0.46, 0.5), _oval(0.46, 0.42, 0.36, 0.4))), "body"),
        (_both_sides(_any(_disc(0.6, -0.4, 0.2), _disc(0.5, 0.45, 0.15))), "second"),
        (
            _any(
                _oval(0, 0.05, 0.11, 0.72), _both_sides(_gon((0.02, -0.6), (0.3, -1.02), (0.36, -0.98), (0.08, -0.56)))
            ),
            "dark",
        ),
    ),
    "cat": (
        (_any(_oval(0, 0.2, 0.88, 0.72), _both_sides(_gon((0.16, -0.3), (0.74, -1.0), (0.86, 0.1)))), "body"),
        (_both_sides(_disc(0.36, 0.06, 0.17)), "light"),
        (_both_sides(_oval(0.36, 0.06, 0.07, 0.15)), "dark"),
        (
            _any(
                _gon((-0.13, 0.36), (0.13, 0.36), (0, 0.5)),
                _both_sides(_gon((0.4, -0.36), (0.68, -0.72), (0.72, -0.2))),
            ),
            "second",
        ),
    ),
}
"""Parts by name, from back to front, the body first; the whole is their union."""

STRANGERS: dict[str, tuple[str, ...]] = {
    "house": ("sky", "water", "wood"),
    "fir": ("sky", "water", "wood"),
    "car": ("sky", "water", "forest"),
    "boat": ("sky", "grass", "snow", "brick"),
    "fish": ("sky", "grass", "snow", "pavement"),
    "duck": ("brick", "wood", "rock"),
    "mushroom": ("sky", "water", "pavement"),
    "balloon": ("forest", "sand", "brick"),
    "mug": ("sky", "forest", "rock"),
    "flower": ("sky", "snow", "pavement"),
    "butterfly": ("snow", "rock", "wall"),
    "cat": ("sky", "water", "snow"),
}
"""The stuff on which a kind never stands in a photo."""

PATTERNS: tuple[Pattern, ...] = (
    lambda u, _: np.full_like(u, -1),
    lambda u, _: np.sin(11 * u),
    lambda _, v: np.sin(9 * v),
    lambda u, v: np.sin(8 * u) * np.sin(8 * v),
    lambda u, v: np.cos(10 * u) + np.cos(10 * v) - 0.8,
    lambda u, v: np.sin(9 * v + 1.5 * np.sin(6 * u)),
)
"""Waves over a body, in units of its radius: it has its other tone where they are positive."""

PALETTE = _colours("e8604f f0b83d 2f8f8c 2c4a7c 8a4a80 f3e3c3 7c9f6b 6fb0dc b9623c e798a2 8fd0b0 45464f f08a38 d9d4e8")
GARISH = _colours("ff00c8 39ff14 00f0ff fff200 7a00ff ff3b00 1400ff 000000 c6ff00 ff0055")
INKS = _colours("1b1f5e 5a1846 0b5351 6b2d00 3d0e61 14452f"), _colours("ffd9a0 f7a1c4 c9f2c7 ffef9f b8e0ff f4c7ff")
DARK, LIGHT = _colours("2b2a33")[0], _colours("f7f1e3")[0]

_LUMA = np.array([0.3, 0.59, 0.11], np.float32)


def _steps(values: Array, reach: int) -> Array:
    """How much each pixel differs from those that far to the right and below."""
    steps = np.zeros(values.shape, np.float32)
    steps[:-reach] += abs(values[reach:] - values[:-reach])
    steps[:, :-reach] += abs(values[:, reach:] - values[:, :-reach])
    return steps


def sketch(rng: Rng, rgb: Array, ids: NDArray[np.integer]) -> Array:
    """Draw contours and hatching in ink on paper: the darker the photo, the denser."""
    size, light = len(ids), np.tensordot(_LUMA, rgb, 1)
    axis, reach = axis_of(size), max(1, size // 112)
    ink = np.maximum(unit(3.5 * _steps(light, reach) - 0.45), unit(_steps(ids.astype(np.float32), reach)))
    for slant, darkest in ((1, 0.62), (-1, 0.42), (0.3, 0.25)):
        lines = np.sin(np.float32(2 * np.pi * 20) * (axis[:, None] + slant * axis))
        ink = np.maximum(ink, 0.7 * unit(1.5 * lines - 0.2) * unit(6 * (darkest - light)))
    paper = 0.95 + 0.008 * noise(rng, axis, size, 60, 60, 0)
    washed = paper * (0.7 + 0.3 * light)
    return np.stack([washed * (1 - 0.86 * ink)] * 3)


def rendition(rng: Rng, rgb: Array, ids: NDArray[np.integer]) -> Array:
    """Print each id in four flat tones between two inks of its own."""
    tone = np.floor(3.999 * unit(1.15 * np.tensordot(_LUMA, rgb, 1) - 0.05)) / 3
    dark, pale = (inks[rng.integers(len(inks), size=256)][ids].transpose(2, 0, 1) for inks in INKS)
    printed: Array = dark + (pale - dark) * tone
    return printed
