"""Generated scenes: textured stuff, overlapping things and exact maps, drawn from (seed, index) alone.

With them the whole path from pre-training to evaluation runs on a bare machine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8

from c2fmae.core.errors import UserError, unknown_name
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import seed_of
from c2fmae.data.drawing import (
    DARK,
    GARISH,
    KINDS,
    LIGHT,
    PALETTE,
    PATTERNS,
    STRANGERS,
    STUFF,
    Array,
    Rng,
    axis_of,
    mix,
    rendition,
    sketch,
    unit,
    waves,
)
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList

REACH = 1.35  # radii from its centre: no kind goes further, at any width
_SMALLEST = 32  # pixels; below it a small object may fall between the pixel centres

Difficulty = Literal["easy", "medium", "hard"]
Domain = Literal["photo", "sketch", "rendition", "displaced"]
Picture = Float32[np.ndarray, "3 height width"]
Ids = UInt8[np.ndarray, "height width"]
Counts = Int[np.ndarray, " thing"]
Distance = Callable[[Array, Array], Array]

_HAZE = np.array(STUFF["sky"].high, np.float32)[:, None, None]


@dataclass(frozen=True)
class Level:
    """How full and how unruly scenes are; radii are in units of the picture's side."""

    others: tuple[int, int]
    """Fewest and most things beside the one that is meant to dominate."""
    large: tuple[float, float]
    """Radii of that one."""
    small: tuple[float, float]
    """Radii of the others."""
    turn: float
    """Most radians that a thing is turned by."""
    tries: int
    """Places that a thing is offered; it takes the roomiest."""
    contrast: float
    """Of the textures."""


LEVELS: dict[Difficulty, Level] = {
    "easy": Level((0, 2), (0.22, 0.34), (0.10, 0.15), turn=0.15, tries=8, contrast=0.8),
    "medium": Level((1, 5), (0.18, 0.27), (0.08, 0.15), turn=0.35, tries=4, contrast=1.0),
    "hard": Level((7, 13), (0.13, 0.19), (0.06, 0.11), turn=math.pi, tries=1, contrast=1.4),
}


@dataclass(frozen=True)
class _Layout:
    """What may lie at the top; in the bands below, and how high their edges may be; on the lowest, in patches."""

    top: tuple[str, ...]
    bands: tuple[tuple[tuple[str, ...], tuple[float, float]], ...]
    patches: tuple[str, ...]


_LAYOUTS = (
    _Layout(
        ("sky",), ((("forest", "rock"), (0.18, 0.36)), (("grass", "sand", "snow"), (0.4, 0.55))), ("sand", "water")
    ),
    _Layout(("sky",), ((("water",), (0.25, 0.4)), (("sand", "grass", "rock"), (0.55, 0.75))), ("grass", "rock")),
    _Layout(("sky",), ((("brick", "forest"), (0.14, 0.28)), (("pavement",), (0.45, 0.6))), ("grass", "water")),
    _Layout(("sky",), ((("grass", "sand", "snow", "water"), (0.25, 0.45)),), ("sand", "snow", "grass")),
    _Layout(("wall",), ((("wood",), (0.45, 0.65)),), ("wall", "grass")),
    _Layout(("brick", "wall"), ((("wood", "pavement", "grass"), (0.4, 0.6)),), ("sand", "snow")),
)


@dataclass(frozen=True)
class Region:
    """A part of the ground or of what is behind it."""

    stuff: str
    top: float
    """The height at which it begins."""
    distance: Distance
    """To its outline from places (y, x), negative inside, in units of the picture's side."""


@dataclass(frozen=True)
class Thing:
    """One object: which, where and how it lies there."""

    kind: str
    stands_on: int
    """The number of the region under its foot."""
    foot: tuple[float, float]
    """Where it stands, down and to the right."""
    radius: float
    turn: float
    width: float
    """Relative; a negative one mirrors."""


@dataclass(frozen=True)
class _Outline:
    """A thing at the pixels of its window: its own coordinates there, and distances to its parts and to the whole."""

    rows: slice
    columns: slice
    radius: float
    """In pixels."""
    u: Array
    v: Array
    parts: tuple[Array, ...]
    whole: Array


@dataclass(frozen=True)
class GeneratedScenes:
    """Scenes of stuff that lies in bands and of things on it; `label` is the kind of the thing that shows most.

    The same (seed, index) is the same scene at every size, and in whatever order scenes are asked for.
    """

    size: int = 224
    length: int = 1024
    seed: int = 0
    difficulty: Difficulty = "medium"
    """From one to three large things to a clutter of small ones, turned and hidden behind each other."""
    domain: Domain = "photo"
    """How the same scenes are drawn; `displaced` also lays under things what they never stand on in a photo."""
    classes: ClassVar[tuple[str, ...]] = (*STUFF, *KINDS)
    """Names by semantic id: stuff, then kinds of things."""
    labels: ClassVar[tuple[str, ...]] = tuple(KINDS)
    """Names by `label`."""

    def __post_init__(self) -> None:
        if self.size < _SMALLEST:
            raise UserError(f"size: generated scenes need at least {_SMALLEST} pixels, got {self.size}")
        if self.difficulty not in LEVELS:
            raise unknown_name("difficulty", self.difficulty, LEVELS)
        if self.domain not in get_args(Domain):
            raise unknown_name("domain", self.domain, get_args(Domain))

    @cached_property
    def info(self) -> DatasetInfo:
        """What the ids mean."""
        classes = [{"name": name, "is_thing": name in KINDS} for name in self.classes]
        labels = [{"name": name} for name in self.labels]
        name = f"generated, {self.difficulty}" + (f", {self.domain}" if self.domain != "photo" else "")
        return DatasetInfo.read({"name": name, "classes": classes, "labels": labels})

    @cached_property
    def keys(self) -> KeyList:
        """Scenes are called by their index."""
        return KeyList.of(f"{index:08d}" for index in range(self.length))

    def photo(self, index: int) -> None:
        """Say that no photo is stored."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if index not in range(self.length):
            raise IndexError(f"scene {index} of {self.length}")
        level, axis = LEVELS[self.difficulty], axis_of(self.size)
        regions, things = lay_out(self._rng("scene", index), level)
        distances = [region.distance(axis[:, None], axis) for region in regions]
        lying = _topmost(distances)
        outlines = [_outline(thing, self.size) for thing in things]
        instance, areas = _instances(outlines, self.size)
        if self.domain == "displaced":
            regions = displace(self._rng("displaced", index), regions, things, areas)

        rng, palette = self._rng("paint", index), GARISH if self.domain == "displaced" else PALETTE
        rgb = _paint_stuff(rng, regions, distances, lying, level.contrast)
        for thing, outline in zip(things, outlines, strict=True):
            _paint_thing(rng, rgb, thing.kind, outline, palette)
        rgb *= rng.uniform(0.95, 1.05, (3, 1, 1)).astype(np.float32) * (1.05 - 0.12 * axis)  # light from the left
        if self.domain in ("sketch", "rendition"):
            redraw = sketch if self.domain == "sketch" else rendition
            rgb = redraw(rng, rgb, np.where(instance, instance, 255 - lying))

        stuff_ids = np.array([self.classes.index(region.stuff) for region in regions], np.uint8)
        kind_ids = np.array([0, *(self.classes.index(thing.kind) for thing in things)], np.uint8)
        new_ids = np.cumsum([False, *(areas > 0)]).astype(np.uint8)  # hidden things leave no gap
        maps = {
            "semantic": np.where(instance, kind_ids[instance], stuff_ids[lying]),
            "instance": new_ids[instance],
            "rgb": (255 * unit(rgb) + 0.5).astype(np.uint8, order="C"),
        }
        tensors = {name: torch.from_numpy(array) for name, array in maps.items()}
        return Scene(f"{index:08d}", tensors, self.labels.index(things[areas.argmax()].kind))

    def _rng(self, stream: str, index: int) -> Rng:
        return np.random.default_rng(seed_of(self.seed, stream, index))


def lay_out(rng: Rng, level: Level) -> tuple[list[Region], list[Thing]]:
    """Return regions, each over those before it, and things from back to front."""
    layout = _LAYOUTS[rng.integers(len(_LAYOUTS))]
    regions = [Region(_one_of(rng, layout.top), 0, lambda y, x: np.full_like(y + x, -1))]
    for options, heights in layout.bands:
        regions.append(_band(rng, _one_of(rng, options), rng.uniform(*heights)))
    patch = _one_of(rng, layout.patches)
    if patch != regions[-1].stuff and rng.random() < 0.6:
        regions.append(_patch(rng, patch, regions[-1]))
    return regions, _stand(rng, level, regions)


def _one_of(rng: Rng, names: Sequence[str]) -> str:
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


def _stand(rng: Rng, level: Level, regions: Sequence[Region]) -> list[Thing]:
    """Stand things where there is room for them, but none on stuff that is strange to its kind."""
    count = 1 + int(rng.integers(*level.others, endpoint=True))
    low, high = np.array([level.large, *[level.small] * (count - 1)], np.float32).T
    radius, turn, width, mirror = rng.random((4, count), np.float32)
    radius = low + (high - low) * radius
    y, x = rng.random((2, count, level.tries), np.float32)
    y = np.maximum(0.32 + 0.66 * y**0.6, 1.9 * radius[:, None])  # of the foot: the large things find their place too
    x = 0.5 + (x - 0.5) * (1 - 1.7 * radius[:, None])
    under = np.zeros(y.shape, np.intp)
    for number, region in enumerate(regions):
        under[region.distance(y, x) < 0] = number

    things: list[Thing] = []
    for k, kind in enumerate(np.array(list(KINDS))[rng.integers(len(KINDS), size=count)].tolist()):
        tries = [t for t in range(level.tries) if regions[under[k, t]].stuff not in STRANGERS[kind]]
        if not tries:
            stuff, tries = regions[under[k, 0]].stuff, [0]
            kind = _one_of(rng, [name for name in KINDS if stuff not in STRANGERS[name]])
        room = [min((math.dist((y[k, t], x[k, t]), other.foot) for other in things), default=0) for t in tries]
        t = tries[room.index(max(room))]
        foot = float(y[k, t]), float(x[k, t])
        angle, wide = level.turn * (2 * float(turn[k]) - 1), 0.88 + 0.26 * float(width[k])
        things.append(Thing(kind, int(under[k, t]), foot, float(radius[k]), angle, wide if mirror[k] < 0.5 else -wide))
    return sorted(things, key=lambda thing: thing.foot)


def displace(rng: Rng, regions: Sequence[Region], things: Sequence[Thing], areas: Counts) -> list[Region]:
    """Turn each region into stuff that is strange to the kind of what shows most of the things that stand on it."""
    largest = {things[k].stands_on: things[k].kind for k in areas.argsort()}
    return [
        replace(region, stuff=_one_of(rng, STRANGERS[largest[number]])) if number in largest else region
        for number, region in enumerate(regions)
    ]


def _topmost(distances: Sequence[Array]) -> Ids:
    """Which region shows at each pixel."""
    lying = np.zeros(distances[0].shape, np.uint8)
    for number, distance in enumerate(distances):
        np.copyto(lying, number, where=distance < 0)
    return lying


def _outline(thing: Thing, size: int) -> _Outline:
    radius, reach = thing.radius * size, REACH * thing.radius
    centre = thing.foot[0] - 0.85 * thing.radius, thing.foot[1]
    rows, columns = (slice(max(0, int((c - reach) * size)), max(0, int((c + reach) * size) + 1)) for c in centre)
    y, x = ((axis_of(size)[part] - c) / thing.radius for part, c in zip((rows, columns), centre, strict=True))
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    u, v = np.add.outer(sin * y, cos * x) / thing.width, np.subtract.outer(cos * y, sin * x)
    parts = tuple(shape(u, v) for shape, _ in KINDS[thing.kind])
    return _Outline(rows, columns, radius, u, v, parts, reduce(np.minimum, parts))


def _instances(outlines: Sequence[_Outline], size: int) -> tuple[Ids, Counts]:
    """Return a map of things by number, from 1, and how many pixels show of each."""
    instance = np.zeros((size, size), np.uint8)
    for number, outline in enumerate(outlines, start=1):
        np.copyto(instance[outline.rows, outline.columns], number, where=outline.whole < 0)
    return instance, np.bincount(instance.ravel(), minlength=len(outlines) + 1)[1:]


def _paint_stuff(
    rng: Rng, regions: Sequence[Region], distances: Sequence[Array], lying: Ids, contrast: float
) -> Picture:
    """Paint each region in the rows where it shows."""
    size = len(lying)
    rgb = np.zeros((3, size, size), np.float32)
    seeds = rng.integers(2**62, size=len(regions))  # a region too small to show at this size moves no other's numbers
    for number, (region, distance) in enumerate(zip(regions, distances, strict=True)):
        shows = np.flatnonzero((lying == number).any(1))
        if not len(shows):
            continue
        rng = np.random.default_rng(seeds[number])
        rows = slice(max(0, shows[0] - 1), shows[-1] + 2)  # with the neighbours that its edge is mixed into
        nearness = unit((axis_of(size)[rows] - np.float32(region.top)) / (1 - region.top))
        if number:
            nearness *= 1.6 / (nearness + 0.6)  # what is further off looks smaller
        stuff = STUFF[region.stuff]
        tone = unit(0.5 + contrast * (stuff.texture(rng, nearness, size) - 0.5))
        tints = rng.uniform(0.93, 1.05, (2, 3))
        low, high = (tints * (stuff.low, stuff.high)).astype(np.float32)[..., None, None]
        paint = low + (high - low) * tone
        if number:
            mix(paint, _HAZE, 0.3 * unit(1 - 2.5 * nearness)[:, None])
        inside = -distance[rows]
        paint *= 1 - 0.3 * unit(1 - 22 * inside)  # a soft shadow along the edge
        mix(rgb[:, rows], paint, unit(0.5 + size * inside))
    return rgb


def _paint_thing(rng: Rng, rgb: Picture, kind: str, outline: _Outline, palette: Array) -> None:
    """Paint a thing, lit from the upper left, and the shadow that it casts."""
    radius, whole = np.float32(outline.radius), outline.whole
    offset = round(0.14 * outline.radius)
    shaded = rgb[:, outline.rows.start + offset :, outline.columns.start + offset :][:, : len(whole), : len(whole[0])]
    shaded *= 1 - 0.45 * unit(0.55 - 2.6 * whole[: shaded.shape[1], : shaded.shape[2]])

    tints = rng.uniform(0.92, 1.06, (3, 1)).astype(np.float32)
    main, second, other = palette[rng.random(len(palette)).argsort()[:3]] * tints
    deep, pale = rng.uniform((0.15, 0.0), (0.75, 0.7)).astype(np.float32)  # of the second and other colours
    colours = {"second": second, "dark": DARK + deep * (second - DARK), "light": LIGHT + pale * (other - LIGHT)}
    other = 0.6 * main + 0.4 * (LIGHT if rng.random() < 0.5 else other)
    pattern = PATTERNS[rng.integers(len(PATTERNS))](outline.u, outline.v)
    paint = main[:, None, None] + (other - main)[:, None, None] * unit(0.5 + pattern * (radius / 9))
    crease = -whole  # how far it is to the nearest edge
    for (_, role), distance in zip(KINDS[kind][1:], outline.parts[1:], strict=True):
        mix(paint, colours[role][:, None, None], unit(0.5 - radius * distance))
        crease = np.minimum(crease, abs(distance))
    height = 1 - unit(1 - 4 * crease) ** 2  # rounded edges
    rise = height[2:, 2:] - height[:-2, :-2]
    paint[:, 1:-1, 1:-1] *= 1 + np.clip(0.06 * radius * rise, -0.3, 0.35)
    mix(rgb[:, outline.rows, outline.columns], paint, unit(0.5 - radius * whole))  # half a pixel on either side
