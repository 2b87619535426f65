"""Rendering of an image: textured regions with soft edges, then shaded things with shadows."""

from collections.abc import Callable, Sequence

import numpy as np

from c2fmae.data.generated.arrays import FloatArray, RgbArray, Rng, clip_to_unit, lerp_inplace, pixel_centres
from c2fmae.data.generated.ground import StuffRegion
from c2fmae.data.generated.palettes import DARK, LIGHT
from c2fmae.data.generated.raster import LayoutRaster, ThingRaster
from c2fmae.data.generated.stuff import STUFF
from c2fmae.data.generated.things import ColourRole

BODY_PATTERNS: tuple[Callable[[FloatArray, FloatArray], FloatArray], ...] = (
    lambda u, _: np.full_like(u, -1),
    lambda u, _: np.sin(11 * u),
    lambda _, v: np.sin(9 * v),
    lambda u, v: np.sin(8 * u) * np.sin(8 * v),
    lambda u, v: np.cos(10 * u) + np.cos(10 * v) - 0.8,
    lambda u, v: np.sin(9 * v + 1.5 * np.sin(6 * u)),
)
"""Patterns over a body, as functions of u and v in units of its radius; positive values have the second tone."""

_HAZE = np.array(STUFF["sky"].high_colour, np.float32)[:, None, None]


def paint_image(
    rng: Rng, regions: Sequence[StuffRegion], raster: LayoutRaster, contrast: float, palette: FloatArray
) -> RgbArray:
    """Render the regions and the things on them, lit from the upper left; values may be above 1."""
    rgb = _paint_ground(rng, regions, raster, contrast)
    for outline in raster.thing_rasters:
        _cast_shadow(rgb, outline)
        _paint_thing(rng, rgb, outline, palette)
    rgb *= rng.uniform(0.95, 1.05, (3, 1, 1)).astype(np.float32) * (1.05 - 0.12 * pixel_centres(rgb.shape[-1]))
    return rgb


def _paint_ground(rng: Rng, regions: Sequence[StuffRegion], raster: LayoutRaster, contrast: float) -> RgbArray:
    """Render each region in the rows where it is visible."""
    size = len(raster.region_map)
    rgb = np.zeros((3, size, size), np.float32)
    # A seed for each region: whether one is visible at this size does not affect the random numbers of the others.
    seeds = rng.integers(2**62, size=len(regions))
    for number, (region, distance) in enumerate(zip(regions, raster.distances, strict=True)):
        visible_rows = np.flatnonzero((raster.region_map == number).any(1))
        if not len(visible_rows):
            continue
        rows = slice(max(0, visible_rows[0] - 1), visible_rows[-1] + 2)  # with a row of soft edge on each side
        nearness = clip_to_unit((pixel_centres(size)[rows] - np.float32(region.top)) / (1 - region.top))
        if number:
            nearness *= 1.6 / (nearness + 0.6)  # distant textures are finer
        colours = _paint_texture(np.random.default_rng(seeds[number]), region.stuff, nearness, size, contrast)
        if number:
            lerp_inplace(colours, _HAZE, 0.3 * clip_to_unit(1 - 2.5 * nearness)[:, None])
        inside = -distance[rows]
        colours *= 1 - 0.3 * clip_to_unit(1 - 22 * inside)  # a soft shadow along the edge
        lerp_inplace(rgb[:, rows], colours, clip_to_unit(0.5 + size * inside))
    return rgb


def _paint_texture(rng: Rng, name: str, nearness: FloatArray, size: int, contrast: float) -> RgbArray:
    stuff = STUFF[name]
    tone = clip_to_unit(0.5 + contrast * (stuff.texture(rng, nearness, size) - 0.5))
    tints = rng.uniform(0.93, 1.05, (2, 3))
    low, high = (tints * (stuff.low_colour, stuff.high_colour)).astype(np.float32)[..., None, None]
    colours: RgbArray = low + (high - low) * tone
    return colours


def _cast_shadow(rgb: RgbArray, outline: ThingRaster) -> None:
    """Darken the area to the lower right of a thing."""
    offset, (height, width) = round(0.14 * outline.radius), outline.outer_distance.shape
    below = rgb[:, outline.rows.start + offset :, outline.columns.start + offset :][:, :height, :width]
    below *= 1 - 0.45 * clip_to_unit(0.55 - 2.6 * outline.outer_distance[: below.shape[1], : below.shape[2]])


def _paint_thing(rng: Rng, rgb: RgbArray, outline: ThingRaster, palette: FloatArray) -> None:
    radius, outer_distance = np.float32(outline.radius), outline.outer_distance
    colours, tone = _pick_colours(rng, palette)
    pattern = BODY_PATTERNS[rng.integers(len(BODY_PATTERNS))](outline.u, outline.v)
    body = colours["body"]
    thing = body + (tone - body) * clip_to_unit(0.5 + pattern * (radius / 9))
    edge_distance = -outer_distance
    for distance, role in outline.part_distances[1:]:
        lerp_inplace(thing, colours[role], clip_to_unit(0.5 - radius * distance))
        edge_distance = np.minimum(edge_distance, abs(distance))
    height = 1 - clip_to_unit(1 - 4 * edge_distance) ** 2  # rounded edges
    rise = height[2:, 2:] - height[:-2, :-2]
    thing[:, 1:-1, 1:-1] *= 1 + np.clip(0.06 * radius * rise, -0.3, 0.35)
    opacity = clip_to_unit(0.5 - radius * outer_distance)  # soft over half a pixel on either side of the outline
    lerp_inplace(rgb[:, outline.rows, outline.columns], thing, opacity)


def _pick_colours(rng: Rng, palette: FloatArray) -> tuple[dict[ColourRole, FloatArray], FloatArray]:
    """Return a random colour for each role, and that of the pattern on the body, each of shape [3, 1, 1]."""
    tints = rng.uniform(0.92, 1.06, (3, 1)).astype(np.float32)
    body, second, other = (palette[rng.random(len(palette)).argsort()[:3]] * tints)[..., None, None]
    deep, pale = rng.uniform((0.15, 0.0), (0.75, 0.7)).astype(np.float32)
    dark, light = DARK[:, None, None], LIGHT[:, None, None]
    colours: dict[ColourRole, FloatArray] = {
        "body": body,
        "second": second,
        "dark": dark + deep * (second - dark),
        "light": light + pale * (other - light),
    }
    return colours, 0.6 * body + 0.4 * (light if rng.random() < 0.5 else other)
