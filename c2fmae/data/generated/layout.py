"""The layout of a scene: regions of stuff, and the things on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from c2fmae.data.generated.arrays import FloatArray, Rng
from c2fmae.data.generated.difficulty import DifficultyLevel
from c2fmae.data.generated.ground import StuffRegion, choose_name, sample_ground, topmost_region
from c2fmae.data.generated.things import IMPLAUSIBLE_STUFF, THING_PARTS

Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """One object: its class, position, size and rotation."""

    class_name: str
    region_index: int
    """Index of the region under its foot."""
    position: Point
    """Its foot, as (y, x)."""
    radius: float
    rotation: float
    relative_width: float
    """Width relative to that of its class; negative is mirrored."""


def sample_layout(rng: Rng, level: DifficultyLevel) -> tuple[list[StuffRegion], list[Thing]]:
    """Return regions and things, both from back to front."""
    regions = sample_ground(rng)
    return regions, _place_things(rng, level, regions)


def _place_things(rng: Rng, level: DifficultyLevel, regions: Sequence[StuffRegion]) -> list[Thing]:
    """Place things far from each other, and none on stuff that is implausible for its class."""
    count = 1 + int(rng.integers(*level.num_others, endpoint=True))
    low, high = np.array([level.large_radii, *[level.small_radii] * (count - 1)], np.float32).T
    size, turn, width, mirror = rng.random((4, count), np.float32)
    radii = low + (high - low) * size
    turns = level.max_rotation * (2 * turn.astype(float) - 1)
    widths = (0.88 + 0.26 * width.astype(float)) * np.where(mirror < 0.5, 1, -1)
    y, x = _sample_positions(rng, radii, level.num_candidates)
    under = topmost_region([region.distance(y, x) for region in regions])

    things: list[Thing] = []
    for k, class_index in enumerate(rng.integers(len(THING_PARTS), size=count)):
        name, stuff = list(THING_PARTS)[class_index], [regions[region].stuff for region in under[k]]
        candidates = [c for c in range(level.num_candidates) if stuff[c] not in IMPLAUSIBLE_STUFF[name]]
        if not candidates:
            candidates, name = (
                [0],
                choose_name(rng, [other for other in THING_PARTS if stuff[0] not in IMPLAUSIBLE_STUFF[other]]),
            )
        feet = [(float(y[k, c]), float(x[k, c])) for c in candidates]
        distances = [min((math.dist(foot, other.position) for other in things), default=0) for foot in feet]
        best = distances.index(max(distances))
        region = int(under[k, candidates[best]])
        things.append(Thing(name, region, feet[best], float(radii[k]), float(turns[k]), float(widths[k])))
    return sorted(things, key=lambda thing: thing.position)


def _sample_positions(rng: Rng, radii: FloatArray, num_candidates: int) -> tuple[FloatArray, FloatArray]:
    """Return candidate positions [thing, candidate], low enough in the image for the radius of each thing."""
    y, x = rng.random((2, len(radii), num_candidates), np.float32)
    y = np.maximum(0.32 + 0.66 * y**0.6, 1.9 * radii[:, None])
    return y, 0.5 + (x - 0.5) * (1 - 1.7 * radii[:, None])
