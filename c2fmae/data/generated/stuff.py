"""Stuff of the background and the bands: a texture between two colours, and the shape of its upper edge."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from c2fmae.data.generated.arrays import FloatArray, Rng, clip_to_unit, pixel_centres
from c2fmae.data.generated.smooth_noise import smooth_noise

RgbColour = tuple[float, float, float]
TextureFn = Callable[[Rng, FloatArray, int], FloatArray]
"""A function that returns tones around 0.5 at rows `y` of an image of a given width; y is 0 where the stuff starts at
the top, and 1 where it is nearest."""


@dataclass(frozen=True)
class Stuff:
    """A texture between two colours, and its upper edge: the height and the number of its bends across the image."""

    texture: TextureFn
    low_colour: RgbColour
    high_colour: RgbColour
    edge_height: float = 0.0
    num_bends: int = 4
    is_stepped: bool = False


def _sky(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    clouds = clip_to_unit(smooth_noise(rng, y, size, 14, 7, 1.6) - 0.15)
    return 0.75 * clouds + 0.55 * y[:, None]


def _forest(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    return 0.42 + 0.22 * smooth_noise(rng, y, size, 40, 40, 0.4) + 0.14 * smooth_noise(rng, y, size, 6, 6, 1)


def _rock(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    clefts = clip_to_unit(1 - 2.2 * abs(smooth_noise(rng, y, size, 20, 14, 0.9)))
    return 0.68 + 0.12 * smooth_noise(rng, y, size, 40, 40, 0.4) - 0.45 * clefts


def _brick(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    courses = float(rng.uniform(11, 17))
    course, place = _split_cells(y * courses), _split_cells(pixel_centres(size) * courses / 2)
    shifted = _split_cells(pixel_centres(size) * courses / 2 + 0.5)
    tones, is_odd = 0.3 + 0.45 * rng.random((18, 10), np.float32), course[0] % 2
    tone = np.stack([tones[:, place[0]], tones[:, shifted[0]]])[is_odd, course[0]]
    upright = np.stack([place[1], shifted[1]]) < 0.06
    wall: FloatArray = np.where(upright[is_odd] | (course[1] < 0.12)[:, None], np.float32(0.95), tone)
    return wall


def _wall(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    count = rng.uniform(9, 16)
    x = pixel_centres(size)
    broad = 0.16 * np.sign(np.sin(np.float32(2 * np.pi * count) * x))
    sprigs = np.outer(np.cos(np.float32(4 * np.pi * count) * y), np.cos(np.float32(2 * np.pi * count) * x))
    paper: FloatArray = 0.6 + broad + 0.25 * clip_to_unit(2 * sprigs - 1)
    return paper


def _wood(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    board, within = _split_cells(y * 7)
    grain = smooth_noise(rng, y, size, 70, 5, 0.5)
    tone = 0.5 + 0.22 * (rng.random(8, np.float32)[board] - 0.5) - np.float32(0.45) * (within < 0.07)
    return 0.12 * grain + tone[:, None]


def _pavement(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    (row, down), (column, across) = _split_cells(y * 6), _split_cells(pixel_centres(size) * 6)
    slabs = 0.5 + 0.3 * rng.random((7, 7), np.float32)
    joints = (down < 0.06)[:, None] | (across < 0.04)
    laid: FloatArray = slabs[row][:, column] - np.float32(0.3) * joints + 0.07 * smooth_noise(rng, y, size, 40, 60, 0)
    return laid


def _grass(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    return 0.45 + 0.17 * smooth_noise(rng, y, size, 16, 90, 0.2) + 0.17 * smooth_noise(rng, y, size, 5, 5, 1)


def _sand(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    ripples = np.sin(70 * y[:, None] + 2.2 * smooth_noise(rng, y, size, 5, 6, 1))
    return 0.55 + 0.16 * ripples + 0.07 * smooth_noise(rng, y, size, 60, 60, 0)


def _snow(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    return 0.72 + 0.2 * smooth_noise(rng, y, size, 9, 4, 1) + 0.05 * smooth_noise(rng, y, size, 60, 60, 0)


def _water(rng: Rng, y: FloatArray, size: int) -> FloatArray:
    glints = clip_to_unit(smooth_noise(rng, y, size, 44, 10, 0.3) - 0.5)
    return 0.3 + 0.55 * glints + 0.14 * smooth_noise(rng, y, size, 8, 4, 1)


def _split_cells(t: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
    """Return the cell of unit length of each point, and the position in it."""
    cell = t.astype(np.intp)
    return cell, t - cell.astype(np.float32)


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
"""Stuff by name, in the order of semantic ids."""
