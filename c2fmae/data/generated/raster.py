"""Rasterised layouts: the visible region and thing of each pixel, and distances to their outlines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Int

from c2fmae.data.generated.arrays import FloatArray, IdGrid, pixel_centres
from c2fmae.data.generated.ground import StuffRegion, topmost_region
from c2fmae.data.generated.layout import Thing
from c2fmae.data.generated.things import MAX_EXTENT, THING_PARTS, ColourRole

ThingAreas = Int[np.ndarray, " thing"]


@dataclass(frozen=True)
class ThingRaster:
    """A thing in its window of pixels: its own coordinates there, and signed distances to its parts and its outline."""

    rows: slice
    columns: slice
    radius: float
    """Radius in pixels."""
    u: FloatArray
    v: FloatArray
    part_distances: tuple[tuple[FloatArray, ColourRole], ...]
    outer_distance: FloatArray


@dataclass(frozen=True)
class LayoutRaster:
    """A layout at the pixels of an image; regions are numbered from 0, things from 1."""

    distances: tuple[FloatArray, ...]
    """Signed distances to each region."""
    region_map: IdGrid
    """Front region of each pixel, without things."""
    thing_rasters: tuple[ThingRaster, ...]
    thing_map: IdGrid
    """Front thing of each pixel; 0 for none."""
    areas: ThingAreas
    """Visible pixels of each thing."""

    @property
    def combined_ids(self) -> IdGrid:
        """One map of both: things count up from 1, regions down from 255."""
        return np.where(self.thing_map, self.thing_map, 255 - self.region_map)


def rasterise_layout(regions: Sequence[StuffRegion], things: Sequence[Thing], size: int) -> LayoutRaster:
    """Rasterise regions and things, both from back to front, at pixel centres."""
    axis = pixel_centres(size)
    distances = tuple(region.distance(axis[:, None], axis) for region in regions)
    outlines = tuple(_rasterise_thing(thing, size) for thing in things)
    thing_map = np.zeros((size, size), np.uint8)
    for number, outline in enumerate(outlines, start=1):
        np.copyto(thing_map[outline.rows, outline.columns], number, where=outline.outer_distance < 0)
    areas = np.bincount(thing_map.ravel(), minlength=len(things) + 1)[1:]
    return LayoutRaster(distances, topmost_region(distances), outlines, thing_map, areas)


def _rasterise_thing(thing: Thing, size: int) -> ThingRaster:
    reach = MAX_EXTENT * thing.radius
    centre = thing.position[0] - 0.85 * thing.radius, thing.position[1]
    rows, columns = (slice(max(0, int((c - reach) * size)), max(0, int((c + reach) * size) + 1)) for c in centre)
    y, x = ((pixel_centres(size)[part] - c) / thing.radius for part, c in zip((rows, columns), centre, strict=True))
    cos, sin = math.cos(thing.rotation), math.sin(thing.rotation)
    u, v = np.add.outer(sin * y, cos * x) / thing.relative_width, np.subtract.outer(cos * y, sin * x)
    part_distances = tuple((shape(u, v), role) for shape, role in THING_PARTS[thing.class_name])
    outer_distance = reduce(np.minimum, (distance for distance, _ in part_distances))
    return ThingRaster(rows, columns, thing.radius * size, u, v, part_distances, outer_distance)
