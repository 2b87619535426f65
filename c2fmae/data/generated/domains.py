"""The same scenes made to look different: drawn in ink, printed in flat tones, or on ground that is strange to them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from c2fmae.data.generated.arrays import Array, Ids, Picture, Rng, axis_of, unit
from c2fmae.data.generated.ground import Region, one_of
from c2fmae.data.generated.layout import Thing
from c2fmae.data.generated.palettes import DARK_INKS, PALE_INKS
from c2fmae.data.generated.raster import Counts
from c2fmae.data.generated.smooth_noise import noise
from c2fmae.data.generated.things import STRANGERS

Domain = Literal["photo", "sketch", "rendition", "displaced"]

_LUMA = np.array([0.3, 0.59, 0.11], np.float32)


def displace(rng: Rng, regions: Sequence[Region], things: Sequence[Thing], areas: Counts) -> list[Region]:
    """Turn each region into stuff that is strange to the kind of what shows most of the things that stand on it."""
    largest = {things[k].stands_on: things[k].kind for k in areas.argsort()}
    return [
        replace(region, stuff=one_of(rng, STRANGERS[largest[number]])) if number in largest else region
        for number, region in enumerate(regions)
    ]


def _sketch(rng: Rng, rgb: Picture, ids: Ids) -> Picture:
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


def _steps(values: Array, reach: int) -> Array:
    """How much each pixel differs from those that far to the right and below."""
    steps = np.zeros(values.shape, np.float32)
    steps[:-reach] += abs(values[reach:] - values[:-reach])
    steps[:, :-reach] += abs(values[:, reach:] - values[:, :-reach])
    return steps


def _rendition(rng: Rng, rgb: Picture, ids: Ids) -> Picture:
    """Print each id in four flat tones between two inks of its own."""
    tone = np.floor(3.999 * unit(1.15 * np.tensordot(_LUMA, rgb, 1) - 0.05)) / 3
    dark, pale = (inks[rng.integers(len(inks), size=256)][ids].transpose(2, 0, 1) for inks in (DARK_INKS, PALE_INKS))
    printed: Picture = dark + (pale - dark) * tone
    return printed


REDRAW: dict[Domain, Callable[[Rng, Picture, Ids], Picture]] = {"sketch": _sketch, "rendition": _rendition}
"""From photos and one map of all that shows."""
