"""Generated scenes: textured stuff, overlapping things and exact maps, drawn from (seed, index) alone.

With them the whole path from pre-training to evaluation runs on a bare machine.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import seed_of
from c2fmae.data.drawing import KINDS, PATTERNS, STUFF, Array, Rng, noise, random_colour, relief, unit

_SMALLEST = 32  # pixels; below it a small object may fall between the pixel centres

Picture = Float32[np.ndarray, "height width 3"]
Ids = UInt8[np.ndarray, "height width"]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class GeneratedScenes:
    """Scenes of 2-4 regions of stuff and 1-6 things; `label` is the kind of the thing that shows most.

    The same (seed, index) is the same scene at every size, and in whatever order scenes are asked for.
    """

    size: int = 224
    length: int = 1024
    seed: int = 0
    classes: ClassVar[tuple[str, ...]] = (*STUFF, *KINDS)
    """Names by semantic id: stuff, then kinds of things."""
    labels: ClassVar[tuple[str, ...]] = tuple(KINDS)
    """Names by `label`."""

    def __post_init__(self) -> None:
        if self.size < _SMALLEST:
            raise UserError(f"size: generated scenes need at least {_SMALLEST} pixels, got {self.size}")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if index not in range(self.length):
            raise IndexError(f"scene {index} of {self.length}")
        rng = np.random.default_rng(seed_of(self.seed, "scene", index))
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        rgb, semantic = _stuff(rng, axis)
        instance = np.zeros_like(semantic)
        kinds = rng.integers(len(KINDS), size=rng.integers(1, 7))
        for number, kind in enumerate(kinds, start=1):
            window, is_inside = _put_thing(rng, axis, rgb, self.labels[kind])
            semantic[window][is_inside] = len(STUFF) + kind
            instance[window][is_inside] = number
        areas = np.bincount(instance.ravel(), minlength=len(kinds) + 1)[1:]
        new_ids = np.concatenate([[0], np.cumsum(areas > 0)]).astype(np.uint8)  # hidden things leave no gap
        photo = np.ascontiguousarray((255 * unit(rgb) + 0.5).astype(np.uint8).transpose(2, 0, 1))
        maps = {"semantic": semantic, "instance": new_ids[instance], "rgb": photo}
        tensors = {name: torch.from_numpy(array) for name, array in maps.items()}
        return Scene(f"{index:08d}", tensors, int(kinds[areas.argmax()]))


def _stuff(rng: Rng, axis: Array) -> tuple[Picture, Ids]:
    """Two to four regions around sites from top to bottom, each won by the nearest site but for some noise."""
    chosen = np.sort(rng.choice(len(STUFF), rng.integers(2, 5), replace=False))
    closeness, paints = [], []
    for place, stuff in enumerate(chosen):
        site = ((place + rng.uniform(0.2, 0.8)) / len(chosen), rng.uniform(0, 1))
        wobble = 0.15 * noise(rng, axis, axis, 4, 4, 3)
        closeness.append(wobble - (axis[:, None] - site[0]) ** 2 - 0.4 * (axis[None] - site[1]) ** 2)
        texture, low, high = list(STUFF.values())[stuff]
        tint = rng.uniform(0.85, 1.1, 3).astype(np.float32)
        paints.append(_blend(np.float32(low) * tint, np.float32(high) * tint, texture(rng, axis, axis)))
    lead = np.stack(closeness) - np.max(closeness, axis=0)
    share = np.exp(lead * (3 * len(axis)))  # borders about a pixel wide
    rgb = sum(part[..., None] * paint for part, paint in zip(share / share.sum(0), paints, strict=True))
    return np.asarray(rgb, np.float32), chosen[lead.argmax(0)].astype(np.uint8)


def _put_thing(rng: Rng, axis: Array, rgb: Picture, kind: str) -> tuple[Window, Bool[np.ndarray, "rows columns"]]:
    """Paint a thing and its shadow into `rgb`; return the window around both and which pixels of it are the thing's."""
    radius = np.float32(np.exp(rng.uniform(np.log(0.09), np.log(0.28))))
    centre, turn, slim = rng.uniform(0.1, 0.9, 2).astype(np.float32), rng.uniform(0, 2 * np.pi), rng.uniform(1, 1.25)
    rows, columns = (slice(*np.searchsorted(axis, (c - 1.4 * radius, c + 1.4 * radius))) for c in centre)
    y, x = (axis[rows, None] - centre[0]) / radius, (axis[None, columns] - centre[1]) / radius
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = cos * x + sin * y, np.float32(slim) * (cos * y - sin * x)
    outline, window = KINDS[kind], (rows, columns)
    distance = outline(u, v)
    shade = unit(0.5 - 3 * outline(u - 0.14 * (cos + sin), v - 0.14 * (cos - sin)))
    rgb[window] *= (1 - 0.5 * shade)[..., None]
    cover = unit(0.5 - distance * radius * len(axis))  # half a pixel on either side of the outline is mixed
    rgb[window] += (_surface(rng, u, v, distance, float(radius) * len(axis)) - rgb[window]) * cover[..., None]
    return window, distance < 0


def _surface(rng: Rng, u: Array, v: Array, distance: Array, radius: float) -> Picture:
    """The lit surface of a thing of that many pixels: two colours in a pattern, a rounded edge and a highlight."""
    wave = list(PATTERNS.values())[rng.integers(len(PATTERNS))](u, v)
    colours = random_colour(rng), 0.35 + 0.65 * random_colour(rng)
    depth = unit(-distance / 0.5)
    light = relief(0.3 * radius * np.sqrt(depth * (2 - depth)))[..., None]
    lit: Picture = _blend(*colours, 0.5 + wave * radius / 9) * (0.3 + 0.9 * light) + 0.45 * light**24
    return lit


def _blend(low: Array, high: Array, tone: Array) -> Picture:
    """The colour of each tone, from `low` at 0 to `high` at 1; tones outside are held to these."""
    mixed: Array = low + (high - low) * unit(tone)[..., None]
    return mixed.astype(np.float32)
