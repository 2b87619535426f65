"""Where several backbones look in the same photos: the paper's Figure 1, with a number under every picture."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Integer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from c2fmae.core.scene import IGNORE, Scene
from c2fmae.eval.analysis.attention import has_global_token, photo_attention, share_on_instances
from c2fmae.models.backbones import Backbone
from c2fmae.report.drawing import INK, MUTED, PAPER, colour_instances, sheet
from c2fmae.views.backbone_figures import Named, SourcesView, Tile, cut_for, tile_size

REACH = 3
"""Colours end where attention is 2³ times, or 1 / 2³ of, what it would be if all patches were looked at alike."""

# Inferno, perceptually uniform from dark to bright: a colour every eighth of the way.
_INFERNO = np.array(
    [
        *[(0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106)],
        *[(186, 54, 85), (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)],
    ],
    np.float64,
)
_COVER = 0.62  # how much colours cover the photo
_CAPTION = 38  # pixels under a tile


class AttentionView(SourcesView):
    """Settings of `c2fmae view attention`."""


def draw_attention(config: AttentionView, sources: Named) -> Image.Image:
    """Draw a row for each scene: the photo with its instances outlined, and where each backbone looks in it."""
    scenes = config.take(sources)
    size = tile_size(config.size_of(sources[0][1]))
    shown = cut_for(scenes, size)
    photos = shown.maps["rgb"].permute(0, 2, 3, 1).numpy()
    has_instances = "instance" in shown.maps
    instances = shown.maps["instance"].numpy() if has_instances else np.zeros(photos.shape[:3], np.uint8)
    outlines = [outline(ids) for ids in instances]
    titles, columns = ["photo"], [[_with_objects(*each) for each in zip(photos, instances, outlines, strict=True)]]
    captions = [[_what_is_there(ids) if has_instances else () for ids in instances]]
    for name, backbone in sources:
        relative, shares, chance = look(config, name, backbone, scenes)
        heat = smooth(relative, size).numpy()
        titles.append(config.title_of(name, backbone))
        columns.append([_with_heat(*each) for each in zip(photos, heat, outlines, strict=True)])
        captions.append([_against_chance(*each) for each in zip(shares.tolist(), chance.tolist(), strict=True)])
    tiles = [
        [np.concatenate([tile, _caption(lines, size[1])]) for tile, lines in zip(*pair, strict=True)]
        for pair in zip(columns, captions, strict=True)
    ]
    rows = [list(row) for row in zip(*tiles, strict=True)]
    rows[0].append(_scale(rows[0][0].shape[0], size[1]))
    notes = ["Attention to patches alone, mean over heads; the scale is the same for all pictures."]
    if lacking := [name for name, backbone in sources if not has_global_token(backbone)]:
        notes.append(f"Without a global token, the mean over what patches look at: {', '.join(lacking)}.")
    return sheet(
        rows,
        column_titles=[*titles, "attention,\n1: as if all patches were alike"],
        title="Where the global token looks",
        subtitle="Under each picture: the share of attention on objects, and how that compares with their share of the "
        "photo, which is chance.",
        footer="\n".join([*notes, str(config.data)]),
    )


def look(
    config: SourcesView, name: str, backbone: Backbone, scenes: Sequence[Scene]
) -> tuple[Float[Tensor, "scene rows columns"], Float64[Tensor, " scene"], Float64[Tensor, " scene"]]:
    """Return a backbone's attention relative to looking everywhere alike, its share on instances, and chance.

    The latter two are NaN where the scenes have no instance maps or labels.
    """
    photos = cut_for(scenes, config.size_of(backbone))
    rgb = photos.maps["rgb"]
    attention = photo_attention(backbone, backbone.standardise(rgb), [config.layer_of(name, backbone)])
    grid = (rgb.shape[2] // backbone.patch, rgb.shape[3] // backbone.patch)
    nothing = torch.full((len(rgb), *rgb.shape[2:]), IGNORE, dtype=torch.uint8)
    shares, chance = share_on_instances(attention, photos.maps.get("instance", nothing), backbone.patch)
    return (attention[:, 0] * attention.shape[2]).unflatten(1, grid), shares[:, 0], chance


def smooth(relative: Float[Tensor, "scene rows columns"], size: tuple[int, int]) -> Float[Tensor, "scene height width"]:
    """Return relative attention at every pixel as its place on the scale, from 0 to 1: 1 / 2 is what all would have."""
    place = (relative.clamp(min=2.0 ** -(2 * REACH)).log2() / (2 * REACH) + 0.5).unsqueeze(1)
    return F.interpolate(place, size, mode="bicubic").squeeze(1).clamp(0, 1)


def outline(ids: Integer[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return which pixels of instances lie at their edge, within the image."""
    around = np.pad(ids, 1, mode="edge")
    height, width = ids.shape
    neighbours = [around[y : y + height, x : x + width] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))]
    return np.asarray((ids != 0) & (ids != IGNORE) & np.any([ids != other for other in neighbours], axis=0))


def colours_at(place: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape 3"]:
    """Return the colour of each place on the scale from 0 to 1."""
    steps = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(place, steps, channel) for channel in _INFERNO.T], axis=-1)


def _with_objects(
    photo: Tile, ids: Integer[np.ndarray, "height width"], edge: Bool[np.ndarray, "height width"]
) -> Tile:
    """Outline instances in their colours, and lighten the rest of them a little."""
    colours, is_object = colour_instances(ids), ((ids != 0) & (ids != IGNORE))[..., None]
    tile = np.where(is_object, 0.7 * photo + 0.3 * colours, photo)
    tile[edge] = colours[edge]
    return np.asarray(tile.round(), np.uint8)


def _with_heat(photo: Tile, place: Float[np.ndarray, "height width"], edge: Bool[np.ndarray, "height width"]) -> Tile:
    grey = photo @ np.array([0.299, 0.587, 0.114])
    tile = (1 - _COVER) * grey[..., None] + _COVER * colours_at(place)
    tile[edge] = 255
    return np.asarray(tile.round(), np.uint8)


def _what_is_there(ids: Integer[np.ndarray, "height width"]) -> Sequence[str]:
    labelled = ids[ids != IGNORE]
    if not labelled.size or not labelled.any():
        return ("no object is labelled",)
    return (f"objects cover {(labelled != 0).mean():.0%}", "this is chance")


def _against_chance(share: float, chance: float) -> Sequence[str]:
    return (f"{share:.0%} on objects", f"{share / chance:.2f} x chance") if chance > 0 else ()


def _caption(lines: Sequence[str], width: int) -> Tile:
    page = Image.new("RGB", (width, _CAPTION), PAPER)
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((width / 2, 15 + 16 * i), line, INK if i else MUTED, ImageFont.load_default(12), "ms")
    return np.asarray(page)


def _scale(height: int, width: int) -> Tile:
    """Return a tile that tells what the colours mean, brightest above."""
    page = Image.new("RGB", (width, height), PAPER)
    bar = colours_at(np.linspace(1, 0, height - 40)[:, None].repeat(18, axis=1)).round().astype(np.uint8)
    page.paste(Image.fromarray(bar), (24, 20))
    pen = ImageDraw.Draw(page)
    for power in range(-REACH, REACH + 1):
        y = 20 + (height - 41) * (REACH - power) / (2 * REACH)
        pen.line((42, y, 47, y), fill=MUTED if power else INK)
        text = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        pen.text((54, y), text, INK if not power else MUTED, ImageFont.load_default(12), "lm")
    return np.asarray(page)
