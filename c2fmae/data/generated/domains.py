"""Other styles of the same scenes: ink drawings, prints in flat tones, or implausible stuff under things."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from c2fmae.data.generated.arrays import FloatArray, IdGrid, RgbArray, Rng, clip_to_unit, pixel_centres
from c2fmae.data.generated.ground import StuffRegion, choose_name
from c2fmae.data.generated.layout import Thing
from c2fmae.data.generated.palettes import DARK_INKS, PALE_INKS
from c2fmae.data.generated.raster import ThingAreas
from c2fmae.data.generated.smooth_noise import smooth_noise
from c2fmae.data.generated.things import IMPLAUSIBLE_STUFF

Domain = Literal["photo", "sketch", "rendition", "displaced"]

_LUMA = np.array([0.3, 0.59, 0.11], np.float32)


def displace_ground(
    rng: Rng, regions: Sequence[StuffRegion], things: Sequence[Thing], areas: ThingAreas
) -> list[StuffRegion]:
    """Replace the stuff of each region by one that is implausible for the largest visible thing on it."""
    largest = {things[k].region_index: things[k].class_name for k in areas.argsort()}
    return [
        replace(region, stuff=choose_name(rng, IMPLAUSIBLE_STUFF[largest[number]])) if number in largest else region
        for number, region in enumerate(regions)
    ]


def _draw_sketch(rng: Rng, rgb: RgbArray, ids: IdGrid) -> RgbArray:
    """Draw contours and hatching in ink on paper; dark areas are hatched more densely."""
    size, light = len(ids), np.tensordot(_LUMA, rgb, 1)
    axis, reach = pixel_centres(size), max(1, size // 112)
    ink = np.maximum(
        clip_to_unit(3.5 * _local_contrast(light, reach) - 0.45),
        clip_to_unit(_local_contrast(ids.astype(np.float32), reach)),
    )
    for slant, darkest in ((1, 0.62), (-1, 0.42), (0.3, 0.25)):
        lines = np.sin(np.float32(2 * np.pi * 20) * (axis[:, None] + slant * axis))
        ink = np.maximum(ink, 0.7 * clip_to_unit(1.5 * lines - 0.2) * clip_to_unit(6 * (darkest - light)))
    paper = 0.95 + 0.008 * smooth_noise(rng, axis, size, 60, 60, 0)
    washed = paper * (0.7 + 0.3 * light)
    return np.stack([washed * (1 - 0.86 * ink)] * 3)


def _local_contrast(values: FloatArray, offset: int) -> FloatArray:
    """Return the absolute difference of each pixel to those `offset` pixels to the right and below."""
    steps = np.zeros(values.shape, np.float32)
    steps[:-offset] += abs(values[offset:] - values[:-offset])
    steps[:, :-offset] += abs(values[:, offset:] - values[:, :-offset])
    return steps


def _draw_rendition(rng: Rng, rgb: RgbArray, ids: IdGrid) -> RgbArray:
    """Print each id in four flat tones between two inks that are drawn for it."""
    tone = np.floor(3.999 * clip_to_unit(1.15 * np.tensordot(_LUMA, rgb, 1) - 0.05)) / 3
    dark, pale = (inks[rng.integers(len(inks), size=256)][ids].transpose(2, 0, 1) for inks in (DARK_INKS, PALE_INKS))
    printed: RgbArray = dark + (pale - dark) * tone
    return printed


DOMAIN_RENDERERS: dict[Domain, Callable[[Rng, RgbArray, IdGrid], RgbArray]] = {
    "sketch": _draw_sketch,
    "rendition": _draw_rendition,
}
"""Renderers by domain: from a generator, the image and `LayoutRaster.combined_ids` to a new image."""
