"""Shared code of figures of several backbones: scenes, image sizes, layers and titles."""

import re
from collections.abc import Sequence

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.core.text import format_count
from c2fmae.models.backbones import Backbone
from c2fmae.views.config import BackboneFigureConfig
from c2fmae.views.scenes import load_evenly_spaced, open_figure_scenes, resolve_figure_source

NamedBackbones = Sequence[tuple[str, Backbone]]
"""Backbones, each with the source that it was loaded from."""

TILE_HEIGHT = 224
"""Pixels."""

_MAX_LINE_LENGTH = 30  # characters of a title


def resolve_scenes(config: BackboneFigureConfig, backbones: NamedBackbones) -> BackboneFigureConfig:
    """Return the config with the scenes that `generated` stands for."""
    names = [name for name, _ in backbones]
    data = resolve_figure_source(config.data, size=TILE_HEIGHT, seed=config.seed, models=names)
    return config.model_copy(update={"data": data})


def load_scenes(config: BackboneFigureConfig, backbones: NamedBackbones) -> list[Scene]:
    """Return the scenes at their stored size; raise if the backbones expect images of different aspect ratios."""
    sizes = {resolve_size(config, backbone) for _, backbone in backbones}
    if len({width / height for height, width in sizes}) > 1:
        shapes = " and ".join(f"{height}×{width}" for height, width in sorted(sizes))
        raise UserError(
            f"size: the backbones expect images of different aspect ratios, {shapes}. "
            "Set one size for all, as in --set size=[224, 224]"
        )
    return load_evenly_spaced(open_figure_scenes(config.data, size=TILE_HEIGHT, seed=config.seed), config.scenes)


def resolve_size(config: BackboneFigureConfig, backbone: Backbone) -> tuple[int, int]:
    """Return the height and width of the images of a backbone."""
    return config.size or backbone.spec.image_size


def resolve_layer(config: BackboneFigureConfig, name: str, backbone: Backbone) -> int:
    """Return the block whose output is drawn, counted from 1."""
    if config.layer is not None and config.layer > backbone.depth:
        raise UserError(
            f"layer: {name} has {format_count(backbone.depth, 'block')}, got {config.layer}. "
            f"Set layer={backbone.depth} or less"
        )
    return config.layer or backbone.depth


def column_title(config: BackboneFigureConfig, name: str, backbone: Backbone) -> str:
    """Return the title above the tiles of a backbone."""
    height, width = resolve_size(config, backbone)
    layer = resolve_layer(config, name, backbone)
    return f"{wrap_path(name)}\n{height}×{width} px, layer {layer} of {backbone.depth}"


def compute_tile_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of tiles with the aspect ratio of images."""
    return TILE_HEIGHT, round(TILE_HEIGHT * size[1] / size[0])


def wrap_path(path: str) -> str:
    """Break a long path between its parts into at most three lines; the start of a longer path is left out.

    >>> wrap_path("timm:vit_small_patch16_224@weights/mae/vit-s.safetensors")
    'timm:vit_small_patch16_224@\\nweights/mae/vit-s.safetensors'
    """
    lines = [""]
    for part in re.findall(r"[^/@_]*[/@_]|[^/@_]+", path):
        if len(lines[-1]) + len(part) > _MAX_LINE_LENGTH and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines if len(lines) <= 3 else ["…", *lines[-2:]])
