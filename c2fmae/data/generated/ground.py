"""Regions of stuff: a background, bands in front of it, and in some scenes an oval on the lowest band."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from c2fmae.data.generated.arrays import FloatArray, IdGrid, Rng, pixel_centres
from c2fmae.data.generated.smooth_noise import cosine_basis
from c2fmae.data.generated.stuff import STUFF

DistanceFn = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class StuffRegion:
    """A region of one stuff."""

    stuff: str
    top: float
    """Height of its upper end, from 0 at the top of the image."""
    distance: DistanceFn
    """Signed distance of points (y, x) to its outline, negative inside, in units of the image's side."""


@dataclass(frozen=True)
class _GroundPlan:
    """Names of stuff for the background, for each band with the range of its upper edge, and for the oval."""

    top: tuple[str, ...]
    bands: tuple[tuple[tuple[str, ...], tuple[float, float]], ...]
    ovals: tuple[str, ...]


_GROUND_PLANS = (
    _GroundPlan(
        ("sky",), ((("forest", "rock"), (0.18, 0.36)), (("grass", "sand", "snow"), (0.4, 0.55))), ("sand", "water")
    ),
    _GroundPlan(("sky",), ((("water",), (0.25, 0.4)), (("sand", "grass", "rock"), (0.55, 0.75))), ("grass", "rock")),
    _GroundPlan(("sky",), ((("brick", "forest"), (0.14, 0.28)), (("pavement",), (0.45, 0.6))), ("grass", "water")),
    _GroundPlan(("sky",), ((("grass", "sand", "snow", "water"), (0.25, 0.45)),), ("sand", "snow", "grass")),
    _GroundPlan(("wall",), ((("wood",), (0.45, 0.65)),), ("wall", "grass")),
    _GroundPlan(("brick", "wall"), ((("wood", "pavement", "grass"), (0.4, 0.6)),), ("sand", "snow")),
)


def sample_ground(rng: Rng) -> list[StuffRegion]:
    """Return regions from back to front; the first covers the image."""
    plan = _GROUND_PLANS[rng.integers(len(_GROUND_PLANS))]
    regions = [StuffRegion(choose_name(rng, plan.top), 0, lambda y, x: np.full_like(y + x, -1))]
    for options, heights in plan.bands:
        regions.append(_sample_band(rng, choose_name(rng, options), rng.uniform(*heights)))
    oval = choose_name(rng, plan.ovals)
    if oval != regions[-1].stuff and rng.random() < 0.6:
        regions.append(_sample_oval(rng, oval, regions[-1]))
    return regions


def topmost_region(distances: Sequence[FloatArray]) -> IdGrid:
    """Return the index of the front region at each point, from the distances to all regions there."""
    numbers = np.zeros(distances[0].shape, np.uint8)
    for number, distance in enumerate(distances):
        np.copyto(numbers, number, where=distance < 0)
    return numbers


def choose_name(rng: Rng, names: Sequence[str]) -> str:
    """Return a random name."""
    return names[int(rng.random() * len(names))]


def _sample_band(rng: Rng, name: str, height: float) -> StuffRegion:
    """Return the region below an edge at about a height."""
    stuff = STUFF[name]
    bends = stuff.edge_height * rng.standard_normal(stuff.num_bends, np.float32)
    bends /= 1 + 0.3 * np.arange(stuff.num_bends, dtype=np.float32)

    def edge(x: FloatArray) -> FloatArray:
        steps = (
            bends[(x * stuff.num_bends).astype(np.intp)]
            if stuff.is_stepped
            else cosine_basis(x, stuff.num_bends) @ bends
        )
        return np.float32(height) + steps

    return StuffRegion(name, float(edge(pixel_centres(32)).min()), lambda y, x: edge(x) - y)


def _sample_oval(rng: Rng, name: str, ground: StuffRegion) -> StuffRegion:
    """Return an oval inside another region."""
    y0, x0, wide, high = rng.uniform((0.75, 0.2, 0.2, 0.06), (0.95, 0.8, 0.5, 0.16)).astype(np.float32)

    def distance(y: FloatArray, x: FloatArray) -> FloatArray:
        oval = np.sqrt(((x - x0) * (high / wide)) ** 2 + (y - y0) ** 2) - high
        inner: FloatArray = np.maximum(oval, ground.distance(y, x) + np.float32(0.03))
        return inner

    return StuffRegion(name, float(y0 - high), distance)
