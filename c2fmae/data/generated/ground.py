"""Where stuff lies: what is behind, bands in front of it, and perhaps a patch on the lowest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from c2fmae.data.generated.arrays import Array, Ids, Rng, axis_of
from c2fmae.data.generated.smooth_noise import waves
from c2fmae.data.generated.stuff import STUFF

Distance = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Region:
    """A part of the ground or of what is behind it."""

    stuff: str
    top: float
    """The height at which it begins."""
    distance: Distance
    """To its outline from places (y, x), negative inside, in units of the picture's side."""


@dataclass(frozen=True)
class _Plan:
    """What may lie at the top; in the bands below, and how high their edges may be; on the lowest, in patches."""

    top: tuple[str, ...]
    bands: tuple[tuple[tuple[str, ...], tuple[float, float]], ...]
    patches: tuple[str, ...]


_PLANS = (
    _Plan(("sky",), ((("forest", "rock"), (0.18, 0.36)), (("grass", "sand", "snow"), (0.4, 0.55))), ("sand", "water")),
    _Plan(("sky",), ((("water",), (0.25, 0.4)), (("sand", "grass", "rock"), (0.55, 0.75))), ("grass", "rock")),
    _Plan(("sky",), ((("brick", "forest"), (0.14, 0.28)), (("pavement",), (0.45, 0.6))), ("grass", "water")),
    _Plan(("sky",), ((("grass", "sand", "snow", "water"), (0.25, 0.45)),), ("sand", "snow", "grass")),
    _Plan(("wall",), ((("wood",), (0.45, 0.65)),), ("wall", "grass")),
    _Plan(("brick", "wall"), ((("wood", "pavement", "grass"), (0.4, 0.6)),), ("sand", "snow")),
)


def lay_ground(rng: Rng) -> list[Region]:
    """Return regions, each over those before it; the first is everywhere."""
    plan = _PLANS[rng.integers(len(_PLANS))]
    regions = [Region(one_of(rng, plan.top), 0, lambda y, x: np.full_like(y + x, -1))]
    for options, heights in plan.bands:
        regions.append(_band(rng, one_of(rng, options), rng.uniform(*heights)))
    patch = one_of(rng, plan.patches)
    if patch != regions[-1].stuff and rng.random() < 0.6:
        regions.append(_patch(rng, patch, regions[-1]))
    return regions


def topmost(distances: Sequence[Array]) -> Ids:
    """The number of the region that shows at each place, from the distances to all of them there."""
    numbers = np.zeros(distances[0].shape, np.uint8)
    for number, distance in enumerate(distances):
        np.copyto(numbers, number, where=distance < 0)
    return numbers


def one_of(rng: Rng, names: Sequence[str]) -> str:
    """Pick a name."""
    return names[int(rng.random() * len(names))]


def _band(rng: Rng, name: str, height: float) -> Region:
    """All that lies below an edge at about that height."""
    stuff = STUFF[name]
    bends = stuff.edge * rng.standard_normal(stuff.bends, np.float32)
    bends /= 1 + 0.3 * np.arange(stuff.bends, dtype=np.float32)

    def edge(x: Array) -> Array:
        steps = bends[(x * stuff.bends).astype(np.intp)] if stuff.is_stepped else waves(x, stuff.bends) @ bends
        return np.float32(height) + steps

    return Region(name, float(edge(axis_of(32)).min()), lambda y, x: edge(x) - y)


def _patch(rng: Rng, name: str, ground: Region) -> Region:
    """An oval that lies within the ground."""
    y0, x0, wide, high = rng.uniform((0.75, 0.2, 0.2, 0.06), (0.95, 0.8, 0.5, 0.16)).astype(np.float32)

    def distance(y: Array, x: Array) -> Array:
        oval = np.sqrt(((x - x0) * (high / wide)) ** 2 + (y - y0) ** 2) - high
        inner: Array = np.maximum(oval, ground.distance(y, x) + np.float32(0.03))
        return inner

    return Region(name, float(y0 - high), distance)
