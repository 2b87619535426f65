"""Pictures of what several backbones make of the same photos."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.data import CentralView, open_scenes
from c2fmae.data.loader import load_first_readable
from c2fmae.models.backbones import Backbone
from c2fmae.views.masked_scenes import SideLength

Tile = UInt8[np.ndarray, "height width 3"]
NamedBackbones = Sequence[tuple[str, Backbone]]
"""Backbones, each with its source as it was given."""

TILE_HEIGHT = 224
"""Pixels of a tile's height."""

_MAX_LINE_LENGTH = 30  # characters of a title


class BackboneFigureConfig(Config):
    """Which photos are looked at, and behind which block."""

    data: Annotated[str, Field(min_length=1)] = "generated"
    """A shard, a folder of scenes or shards, or `generated`."""
    scenes: PositiveInt = 4
    """At most so many, spread evenly over the data."""
    size: tuple[SideLength, SideLength] | None = None
    """Height and width of the photos; for each backbone those that it learned from, unless given."""
    layer: PositiveInt | None = None
    """Behind which block, counted from 1; the last, unless given."""
    seed: int = 0
    """Of generated scenes."""

    def load_scenes(self, backbones: NamedBackbones) -> list[Scene]:
        """Return the scenes, as they are stored."""
        sizes = {self.resolve_size(backbone) for _, backbone in backbones}
        if len({width / height for height, width in sizes}) > 1:
            shapes = " and ".join(f"{height}×{width}" for height, width in sorted(sizes))
            raise UserError(f"size: the sources learned from photos of other shapes, {shapes}. Set one for all")
        options: dict[str, Any] = {"size": TILE_HEIGHT, "seed": self.seed} if self.data == "generated" else {}
        source_scenes = open_scenes(self.data, **options)
        count = min(self.scenes, len(source_scenes))
        indices = [(2 * i + 1) * len(source_scenes) // (2 * count) for i in range(count)]
        return [load_first_readable(source_scenes, place, []) for place in indices]

    def resolve_size(self, backbone: Backbone) -> tuple[int, int]:
        """Return the height and width of a backbone's photos."""
        return self.size or backbone.spec.image_size

    def resolve_layer(self, name: str, backbone: Backbone) -> int:
        """Return which of a backbone's blocks it is."""
        if self.layer is not None and self.layer > backbone.depth:
            raise UserError(f"layer: {name} has {backbone.depth} blocks, got {self.layer}")
        return self.layer or backbone.depth

    def format_title(self, name: str, backbone: Backbone) -> str:
        """Return what stands above a backbone's tiles."""
        height, width = self.resolve_size(backbone)
        return f"{wrap_path(name)}\n{height}×{width} px, layer {self.resolve_layer(name, backbone)} of {backbone.depth}"


def crop_scenes(scenes: Sequence[Scene], size: tuple[int, int]) -> SceneBatch:
    """Return the central part of scenes at a size."""
    view = CentralView(size=size, max_instances=IGNORE)
    return SceneBatch.stack([view(scene) for scene in scenes])


def compute_tile_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of tiles of the shape of photos."""
    return TILE_HEIGHT, round(TILE_HEIGHT * size[1] / size[0])


def wrap_path(path: str) -> str:
    """Break a path between its parts where it is long, and of one that is longer than three lines keep the end.

    >>> wrap_path("timm:vit_small_patch16_224@weights/mae/vit-s.safetensors")
    'timm:vit_small_patch16_224@\\nweights/mae/vit-s.safetensors'
    """
    lines = [""]
    for part in re.findall(r"[^/@_]*[/@_]|[^/@_]+", path):
        if len(lines[-1]) + len(part) > _MAX_LINE_LENGTH and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines if len(lines) <= 3 else ["…", *lines[-2:]])
