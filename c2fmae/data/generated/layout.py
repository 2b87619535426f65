"""What a scene consists of: regions of stuff, and the things that stand on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from c2fmae.data.generated.arrays import Array, Rng
from c2fmae.data.generated.difficulty import Level
from c2fmae.data.generated.ground import Region, lay_ground, one_of, topmost
from c2fmae.data.generated.things import KINDS, STRANGERS

Place = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """One object: which, where and how it lies there."""

    kind: str
    stands_on: int
    """The number of the region under its foot."""
    foot: Place
    """Where it stands, down and to the right."""
    radius: float
    turn: float
    width: float
    """Relative; a negative one mirrors."""


def lay_out(rng: Rng, level: Level) -> tuple[list[Region], list[Thing]]:
    """Return regions, each over those before it, and things from back to front."""
    regions = lay_ground(rng)
    return regions, _stand(rng, level, regions)


def _stand(rng: Rng, level: Level, regions: Sequence[Region]) -> list[Thing]:
    """Stand things where there is room for them, but none on stuff that is strange to its kind."""
    count = 1 + int(rng.integers(*level.others, endpoint=True))
    low, high = np.array([level.large, *[level.small] * (count - 1)], np.float32).T
    share, turn, width, mirror = rng.random((4, count), np.float32)
    radii = low + (high - low) * share
    turns = level.turn * (2 * turn.astype(float) - 1)
    widths = (0.88 + 0.26 * width.astype(float)) * np.where(mirror < 0.5, 1, -1)
    y, x = _feet(rng, radii, level.tries)
    under = topmost([region.distance(y, x) for region in regions])

    things: list[Thing] = []
    for k, number in enumerate(rng.integers(len(KINDS), size=count)):
        kind, stuff = list(KINDS)[number], [regions[region].stuff for region in under[k]]
        tries = [t for t in range(level.tries) if stuff[t] not in STRANGERS[kind]]
        if not tries:
            tries, kind = [0], one_of(rng, [name for name in KINDS if stuff[0] not in STRANGERS[name]])
        feet = [(float(y[k, t]), float(x[k, t])) for t in tries]
        room = [min((math.dist(foot, other.foot) for other in things), default=0) for foot in feet]
        best = room.index(max(room))
        region = int(under[k, tries[best]])
        things.append(Thing(kind, region, feet[best], float(radii[k]), float(turns[k]), float(widths[k])))
    return sorted(things, key=lambda thing: thing.foot)


def _feet(rng: Rng, radii: Array, tries: int) -> tuple[Array, Array]:
    """Offer each thing places to stand, [thing, try]: low enough that the large ones find theirs too."""
    y, x = rng.random((2, len(radii), tries), np.float32)
    y = np.maximum(0.32 + 0.66 * y**0.6, 1.9 * radii[:, None])
    return y, 0.5 + (x - 0.5) * (1 - 1.7 * radii[:, None])
