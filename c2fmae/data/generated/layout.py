"""What a scene consists of: regions of stuff, and the things that stand on them."""

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
    """One object: which, where and how it lies there."""

    class_name: str
    region_index: int
    """The number of the region under its foot."""
    position: Point
    """Where it stands, down and to the right."""
    radius: float
    rotation: float
    relative_width: float
    """Relative; a negative one mirrors."""


def sample_layout(rng: Rng, level: DifficultyLevel) -> tuple[list[StuffRegion], list[Thing]]:
    """Return regions, each over those before it, and things from back to front."""
    regions = sample_ground(rng)
    return regions, _place_things(rng, level, regions)


def _place_things(rng: Rng, level: DifficultyLevel, regions: Sequence[StuffRegion]) -> list[Thing]:
    """Stand things where there is room for them, but none on stuff that is strange to its kind."""
    count = 1 + int(rng.integers(*level.num_others, endpoint=True))
    low, high = np.array([level.large_radii, *[level.small_radii] * (count - 1)], np.float32).T
    share, turn, width, mirror = rng.random((4, count), np.float32)
    radii = low + (high - low) * share
    turns = level.max_rotation * (2 * turn.astype(float) - 1)
    widths = (0.88 + 0.26 * width.astype(float)) * np.where(mirror < 0.5, 1, -1)
    y, x = _sample_positions(rng, radii, level.num_candidates)
    under = topmost_region([region.distance(y, x) for region in regions])

    things: list[Thing] = []
    for k, number in enumerate(rng.integers(len(THING_PARTS), size=count)):
        kind, stuff = list(THING_PARTS)[number], [regions[region].stuff for region in under[k]]
        tries = [t for t in range(level.num_candidates) if stuff[t] not in IMPLAUSIBLE_STUFF[kind]]
        if not tries:
            tries, kind = (
                [0],
                choose_name(rng, [name for name in THING_PARTS if stuff[0] not in IMPLAUSIBLE_STUFF[name]]),
            )
        feet = [(float(y[k, t]), float(x[k, t])) for t in tries]
        room = [min((math.dist(foot, other.position) for other in things), default=0) for foot in feet]
        best = room.index(max(room))
        region = int(under[k, tries[best]])
        things.append(Thing(kind, region, feet[best], float(radii[k]), float(turns[k]), float(widths[k])))
    return sorted(things, key=lambda thing: thing.position)


def _sample_positions(rng: Rng, radii: FloatArray, num_candidates: int) -> tuple[FloatArray, FloatArray]:
    """Offer each thing places to stand, [thing, try]: low enough that the large ones find theirs too."""
    y, x = rng.random((2, len(radii), num_candidates), np.float32)
    y = np.maximum(0.32 + 0.66 * y**0.6, 1.9 * radii[:, None])
    return y, 0.5 + (x - 0.5) * (1 - 1.7 * radii[:, None])
