"""Attention maps of several backbones on the same images, as in Figure 1 of the paper, each with its object ratio."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Integer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from c2fmae.config.data import describe_source
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.eval.analysis.attention import compute_attention_on_instances, compute_image_attention, has_global_token
from c2fmae.models.backbones import Backbone
from c2fmae.report.drawing import (
    BACKGROUND_COLOUR,
    MUTED_COLOUR,
    TEXT_COLOUR,
    Tile,
    colour_instances,
    draw_tile_sheet,
    image_to_tile,
)
from c2fmae.views.backbone_figures import (
    NamedBackbones,
    column_title,
    compute_tile_size,
    load_scenes,
    resolve_layer,
    resolve_scenes,
    resolve_size,
)
from c2fmae.views.config import BackboneFigureConfig
from c2fmae.views.scenes import crop_scenes

MAX_LOG2_RATIO = 3
"""Colours range from 1 / 2³ to 2³ times uniform attention."""

# Inferno, perceptually uniform from dark to bright: nine equidistant colours.
_INFERNO = np.array(
    [
        *[(0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106)],
        *[(186, 54, 85), (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)],
    ],
    np.float64,
)
_OVERLAY_OPACITY = 0.62  # of the colours over the grey image
_CAPTION_HEIGHT = 38  # pixels below a tile


def draw_attention(config: BackboneFigureConfig, backbones: NamedBackbones) -> Image.Image:
    """Draw a row for each scene: the image with its instances outlined, and the attention map of each backbone."""
    config = resolve_scenes(config, backbones)
    scenes = load_scenes(config, backbones)
    size = compute_tile_size(resolve_size(config, backbones[0][1]))
    cropped = crop_scenes(scenes, size)
    images = [image_to_tile(image) for image in cropped.maps["rgb"].numpy()]
    has_instances = "instance" in cropped.maps
    instances = cropped.maps["instance"].numpy() if has_instances else np.zeros((len(images), *size), np.uint8)
    edges = [find_instance_edges(ids) for ids in instances]
    titles, columns = ["image"], [[_overlay_instances(*row) for row in zip(images, instances, edges, strict=True)]]
    captions = [[_describe_coverage(ids) if has_instances else () for ids in instances]]
    for name, backbone in backbones:
        relative, fractions, chance = measure_attention(config, name, backbone, scenes)
        heat = attention_to_heatmap(relative, size).numpy()
        titles.append(column_title(config, name, backbone))
        columns.append([_overlay_heatmap(*row) for row in zip(images, heat, edges, strict=True)])
        captions.append([_describe_ratio(*row) for row in zip(fractions.tolist(), chance.tolist(), strict=True)])
    tiles = [
        [np.concatenate([tile, _draw_caption(lines, size[1])]) for tile, lines in zip(*pair, strict=True)]
        for pair in zip(columns, captions, strict=True)
    ]
    rows = [list(row) for row in zip(*tiles, strict=True)]
    rows[0].append(_draw_colour_scale(rows[0][0].shape[0], size[1]))
    notes = ["Attention to patches only, averaged over heads; all images share one scale."]
    if without_token := [name for name, backbone in backbones if not has_global_token(backbone)]:
        notes.append(f"No global token, so the attention is averaged over all patches: {', '.join(without_token)}.")
    return draw_tile_sheet(
        rows,
        column_titles=[*titles, "attention relative\nto uniform"],
        title="Attention of the global token",
        subtitle="Below each image: the percentage of attention on objects, and its ratio to the percentage of the "
        "image that objects cover (chance).",
        footer="\n".join([*notes, describe_source(config.data)]),
    )


def measure_attention(
    config: BackboneFigureConfig, name: str, backbone: Backbone, scenes: Sequence[Scene]
) -> tuple[Float[Tensor, "scene rows columns"], Float64[Tensor, " scene"], Float64[Tensor, " scene"]]:
    """Return a backbone's attention relative to uniform attention, its fraction on instances, and chance.

    The last two are NaN where scenes have no labelled instances.
    """
    cropped = crop_scenes(scenes, resolve_size(config, backbone))
    rgb = cropped.maps["rgb"]
    attention = compute_image_attention(backbone, backbone.standardise(rgb), [resolve_layer(config, name, backbone)])
    grid = (rgb.shape[2] // backbone.patch, rgb.shape[3] // backbone.patch)
    unlabelled = torch.full((len(rgb), *rgb.shape[2:]), IGNORE, dtype=torch.uint8)
    fractions, chance = compute_attention_on_instances(
        attention, cropped.maps.get("instance", unlabelled), backbone.patch
    )
    return (attention[:, 0] * attention.shape[2]).unflatten(1, grid), fractions[:, 0], chance


def attention_to_heatmap(
    relative_attention: Float[Tensor, "scene rows columns"], size: tuple[int, int]
) -> Float[Tensor, "scene height width"]:
    """Return relative attention at every pixel on the colour scale [0, 1], where 1 / 2 is uniform attention."""
    heatmap = (
        relative_attention.clamp(min=2.0 ** -(2 * MAX_LOG2_RATIO)).log2() / (2 * MAX_LOG2_RATIO) + 0.5
    ).unsqueeze(1)
    return F.interpolate(heatmap, size, mode="bicubic").squeeze(1).clamp(0, 1)


def find_instance_edges(ids: Integer[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return True for the pixels of instances next to another id; the border of the image is not an edge."""
    padded = np.pad(ids, 1, mode="edge")
    height, width = ids.shape
    neighbours = [padded[y : y + height, x : x + width] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))]
    return np.asarray((ids != 0) & (ids != IGNORE) & np.any([ids != other for other in neighbours], axis=0))


def apply_colour_map(values: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape 3"]:
    """Return the colours of values in [0, 1]."""
    steps = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(values, steps, channel) for channel in _INFERNO.T], axis=-1)


def _overlay_instances(
    image: Tile, ids: Integer[np.ndarray, "height width"], edge: Bool[np.ndarray, "height width"]
) -> Tile:
    """Return the image with instances outlined and tinted in their colours."""
    colours, is_object = colour_instances(ids), ((ids != 0) & (ids != IGNORE))[..., None]
    tile = np.where(is_object, 0.7 * image + 0.3 * colours, image)
    tile[edge] = colours[edge]
    return np.asarray(tile.round(), np.uint8)


def _overlay_heatmap(
    image: Tile, heatmap: Float[np.ndarray, "height width"], edge: Bool[np.ndarray, "height width"]
) -> Tile:
    grey = image @ np.array([0.299, 0.587, 0.114])
    tile = (1 - _OVERLAY_OPACITY) * grey[..., None] + _OVERLAY_OPACITY * apply_colour_map(heatmap)
    tile[edge] = 255
    return np.asarray(tile.round(), np.uint8)


def _describe_coverage(ids: Integer[np.ndarray, "height width"]) -> Sequence[str]:
    labelled = ids[ids != IGNORE]
    if not labelled.size or not labelled.any():
        return ("no labelled object",)
    return (f"objects cover {(labelled != 0).mean():.0%}", "(chance)")


def _describe_ratio(fraction: float, chance: float) -> Sequence[str]:
    return (f"{fraction:.0%} on objects", f"{fraction / chance:.2f} x chance") if chance > 0 else ()


def _draw_caption(lines: Sequence[str], width: int) -> Tile:
    page = Image.new("RGB", (width, _CAPTION_HEIGHT), BACKGROUND_COLOUR)
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((width / 2, 15 + 16 * i), line, TEXT_COLOUR if i else MUTED_COLOUR, ImageFont.load_default(12), "ms")
    return np.asarray(page)


def _draw_colour_scale(height: int, width: int) -> Tile:
    """Return a tile with the colour scale, brightest at the top."""
    page = Image.new("RGB", (width, height), BACKGROUND_COLOUR)
    bar = apply_colour_map(np.linspace(1, 0, height - 40)[:, None].repeat(18, axis=1)).round().astype(np.uint8)
    page.paste(Image.fromarray(bar), (24, 20))
    pen = ImageDraw.Draw(page)
    for power in range(-MAX_LOG2_RATIO, MAX_LOG2_RATIO + 1):
        y = 20 + (height - 41) * (MAX_LOG2_RATIO - power) / (2 * MAX_LOG2_RATIO)
        pen.line((42, y, 47, y), fill=MUTED_COLOUR if power else TEXT_COLOUR)
        text = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        pen.text((54, y), text, TEXT_COLOUR if not power else MUTED_COLOUR, ImageFont.load_default(12), "lm")
    return np.asarray(page)
