"""A layout at the pixels of a picture: what shows where, and how far it is to each outline."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Int

from c2fmae.data.generated.arrays import Array, Ids, axis_of
from c2fmae.data.generated.ground import Region, topmost
from c2fmae.data.generated.layout import Thing
from c2fmae.data.generated.things import KINDS, REACH, Role

Counts = Int[np.ndarray, " thing"]


@dataclass(frozen=True)
class Outline:
    """A thing at the pixels of its window: its own coordinates there, and distances to its parts and to the whole."""

    rows: slice
    columns: slice
    radius: float
    """In pixels."""
    u: Array
    v: Array
    parts: tuple[tuple[Array, Role], ...]
    whole: Array


@dataclass(frozen=True)
class Raster:
    """What shows of a layout; regions have numbers from 0, things from 1."""

    distances: tuple[Array, ...]
    """To each region."""
    region_map: Ids
    """Regions as they lie under the things."""
    outlines: tuple[Outline, ...]
    thing_map: Ids
    """0 where no thing is."""
    areas: Counts
    """How many pixels show of each thing."""

    @property
    def ids(self) -> Ids:
        """One map of both: things count up from 1, regions down from 255."""
        return np.where(self.thing_map, self.thing_map, 255 - self.region_map)


def rasterise(regions: Sequence[Region], things: Sequence[Thing], size: int) -> Raster:
    """Look at regions and things, both from back to front, at the centres of pixels."""
    axis = axis_of(size)
    distances = tuple(region.distance(axis[:, None], axis) for region in regions)
    outlines = tuple(_outline(thing, size) for thing in things)
    thing_map = np.zeros((size, size), np.uint8)
    for number, outline in enumerate(outlines, start=1):
        np.copyto(thing_map[outline.rows, outline.columns], number, where=outline.whole < 0)
    areas = np.bincount(thing_map.ravel(), minlength=len(things) + 1)[1:]
    return Raster(distances, topmost(distances), outlines, thing_map, areas)


def _outline(thing: Thing, size: int) -> Outline:
    reach = REACH * thing.radius
    centre = thing.foot[0] - 0.85 * thing.radius, thing.foot[1]
    rows, columns = (slice(max(0, int((c - reach) * size)), max(0, int((c + reach) * size) + 1)) for c in centre)
    y, x = ((axis_of(size)[part] - c) / thing.radius for part, c in zip((rows, columns), centre, strict=True))
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    u, v = np.add.outer(sin * y, cos * x) / thing.width, np.subtract.outer(cos * y, sin * x)
    parts = tuple((shape(u, v), role) for shape, role in KINDS[thing.kind])
    whole = reduce(np.minimum, (distance for distance, _ in parts))
    return Outline(rows, columns, thing.radius * size, u, v, parts, whole)
