"""What a model makes of hidden patches, beside what it saw and what is there."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config, Count
from c2fmae.core.errors import UserError, unknown_name
from c2fmae.core.masks import Masks
from c2fmae.core.scene import GRANULARITIES, SceneBatch
from c2fmae.core.seeding import seed_of
from c2fmae.data import CentralView, Scenes
from c2fmae.data.loader import first_whole
from c2fmae.masking import random_mask
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.config import HeadPlan
from c2fmae.methods.model_inputs import patch_grid
from c2fmae.models.targets import TARGET_OF_KIND, NormalizedPixels
from c2fmae.report.drawing import (
    MUTED,
    PAPER,
    Colour,
    classes_in,
    colour_classes,
    colour_instances,
    hide_patches,
    legend,
    sheet,
)

Tile = UInt8[np.ndarray, "height width 3"]
Values = Shaped[np.ndarray, "*channels rows columns"]

_SIDE = 128  # pixels that the sides of a tile have at the least
_AMOUNT = re.compile(r"\d+|\d+(\.\d+)?%")
_LONGEST = 40  # characters of a key: its end tells more than its beginning


class ReconstructView(Config):
    """Settings of `c2fmae view reconstruct`."""

    scenes: Count = 6
    seed: int = 0
    """Of the draw of what is visible."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Whose checkpoint is taken; the newest unless given."""
    average: bool = False
    """Take the average of the weights that `training.ema` kept."""


def take_scenes(method: MaskedAutoencoding, scenes: Scenes, count: int) -> SceneBatch:
    """Return at most so many scenes, spread evenly over a source and cut as the method takes them."""
    view = CentralView(**method.cut)
    count = min(count, len(scenes))
    places = [(2 * i + 1) * len(scenes) // (2 * count) for i in range(count)]
    return SceneBatch.stack([view(first_whole(scenes, place, [])) for place in places])


def masks_like_training(method: MaskedAutoencoding, scenes: SceneBatch, *, seed: int = 0) -> Masks:
    """Hide what the last step of a training would."""
    if missing := [name for name in method.config.granularities if name not in scenes.maps]:
        example = f"--visible {next(iter(scenes.maps))}:25%"
        raise UserError(f"the scenes lack {', '.join(missing)}: say what is visible of the others, as in {example}")
    return method.hide(scenes, progress=1.0, generator=_draw(seed))


def masks_showing(method: MaskedAutoencoding, scenes: SceneBatch, wanted: Mapping[str, str], *, seed: int = 0) -> Masks:
    """Show of each granularity what is wanted, in the words of `visible_masks`."""
    rows, columns = patch_grid(method.config, method.patch, scenes)
    return visible_masks(
        wanted,
        method.config.granularities,
        batch=len(scenes),
        num_patches=rows * columns,
        generator=_draw(seed),
    )


def visible_masks(
    wanted: Mapping[str, str],
    granularities: Sequence[str],
    *,
    batch: int,
    num_patches: int,
    generator: torch.Generator,
) -> Masks:
    """Show "all", "none", so many ("40") or such a share ("25%") of each granularity's patches; none where unsaid.

    Which ones is drawn for every image; by the same draw, more patches are the fewer and others.

    >>> draw = torch.Generator().manual_seed(0)
    >>> visible_masks({"rgb": "50%"}, ("semantic", "rgb"), batch=2, num_patches=8, generator=draw).num_masked.tolist()
    [[8, 4], [8, 4]]
    """
    for name in wanted:
        if name not in granularities:
            raise UserError(f"--visible: {unknown_name('granularity', name, granularities)}")
    counts = [_count(name, wanted.get(name, "none"), num_patches) for name in granularities]
    noise = torch.rand(batch * len(counts), num_patches, generator=generator)
    is_masked = random_mask(noise, num_patches - torch.tensor(counts).repeat(batch))
    return Masks.of(is_masked.unflatten(0, (batch, len(counts))), granularities, num_visible=sum(counts))


def read_visible(words: Sequence[str]) -> dict[str, str]:
    """Return what `--visible` asks for, by granularity.

    >>> read_visible(["rgb:all", "instance:40"])
    {'rgb': 'all', 'instance': '40'}
    """
    wanted: dict[str, str] = {}
    for word in words:
        name, is_pair, amount = word.partition(":")
        if not is_pair or not name or not amount:
            raise UserError(f"--visible {word}: expected a granularity and how much of it, as in rgb:all")
        if name in wanted:
            raise UserError(f"--visible {word}: {name} is there twice")
        wanted[name] = amount
    return wanted


def draw_reconstruction(
    method: MaskedAutoencoding, scenes: SceneBatch, masks: Masks, *, model: str = "", class_names: Sequence[str] = ()
) -> Image.Image:
    """Draw a row for each scene: of each granularity the truth, what the encoder saw of it, and what the heads say.

    A map that the scenes lack is drawn as predicted. `model` says whose predictions these are.
    """
    device = next(method.model.parameters()).device
    predicted = method.predict(scenes.to(device), masks.to(device)).to("cpu")
    scenes, masks = scenes.to("cpu"), masks.to("cpu")
    grid = patch_grid(method.config, method.patch, scenes)
    side = method.patch * -(-_SIDE // (min(grid) * method.patch))
    size = (grid[0] * side, grid[1] * side)
    columns, classes = dict[str, Sequence[Tile]](), list[Tensor]()
    notes = ["Patches that were visible are pasted into the predictions."]
    for index, name in enumerate(masks.granularities):
        title, true = "photo" if name == "rgb" else f"{name} map", scenes.maps.get(name)
        is_masked = masks.is_masked[:, index].unflatten(1, grid).numpy()
        columns[title] = truth = _tiles(name, true, true, len(scenes), size)
        columns[f"{title},\nwhat is seen"] = [
            hide_patches(tile, hidden, cover=1) for tile, hidden in zip(truth, is_masked, strict=True)
        ]
        maps = {head: predicted.maps.get(head.name) for head in method.config.heads() if head.granularity == name}
        for head, found in maps.items():
            columns[f"{title},\npredicted{_manner(head)}"] = _tiles(name, found, true, len(scenes), size)
            target = method.objectives[head.name].target
            if getattr(target, "is_relative", False):
                of = " of each patch" if isinstance(target, NormalizedPixels) else ""
                notes.append(f"Mean and deviation{of} borrowed from the truth: {title}, predicted{_manner(head)}.")
        if GRANULARITIES.get(name).colouring == "classes":
            classes += [each.flatten(1) for each in (true, *maps.values()) if each is not None]
    if classes:
        columns["classes"] = [legend(_colours(ids.numpy(), class_names), *size) for ids in torch.cat(classes, dim=1)]
    return sheet(
        list(zip(*columns.values(), strict=True)),
        column_titles=list(columns),
        row_titles=[key if len(key) <= _LONGEST else f"... {key[4 - _LONGEST :]}" for key in scenes.keys],
        title="What is made of hidden patches",
        subtitle=f"{model} · {_visible(masks)}" if model else _visible(masks),
        footer="\n".join(notes),
    )


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, "masks", 0))


def _count(name: str, amount: str, num_patches: int) -> int:
    """Return how many of the patches an amount is."""
    if amount in ("all", "none"):
        return num_patches if amount == "all" else 0
    if not _AMOUNT.fullmatch(amount):
        expected = "all, none, a number of patches or a percentage of them"
        raise UserError(f"--visible {name}:{amount}: expected {expected}, as in {name}:40 or {name}:25%")
    count = round(float(amount[:-1]) / 100 * num_patches) if amount.endswith("%") else int(amount)
    if count > num_patches:
        raise UserError(f"--visible {name}:{amount}: there are {num_patches} patches of {name}")
    return count


def _tiles(name: str, maps: Tensor | None, like: Tensor | None, count: int, size: tuple[int, int]) -> list[Tile]:
    """Return a granularity's maps as tiles, each cell a square of pixels; where there are none, the word."""
    if maps is None:
        return [_none(size)] * count
    zoom, like = size[0] // maps.shape[-2], maps if like is None else like
    tiles = [_coloured(name, *pair) for pair in zip(maps.numpy(), like.numpy(), strict=True)]
    return [tile.repeat(zoom, axis=0).repeat(zoom, axis=1) for tile in tiles]


def _coloured(name: str, values: Values, like: Values) -> Tile:
    """Return a map in its granularity's colours; heat runs from the lowest to the highest value of another map."""
    match GRANULARITIES.get(name).colouring:
        case "classes":
            return colour_classes(values)
        case "instances":
            return colour_instances(values)
        case "heat":
            low, high = float(like.min()), float(like.max())
            grey = (255 * (values - low) / max(high - low, 1e-6)).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        case "photo":
            return np.broadcast_to(values[:3], (3, *values.shape[1:])).transpose(1, 2, 0)


def _colours(ids: Shaped[np.ndarray, " cell"], names: Sequence[str]) -> dict[str, Colour]:
    return {name: colour for name, _, colour in classes_in(ids, names)}


def _none(size: tuple[int, int]) -> Tile:
    page = Image.new("RGB", size[::-1], PAPER)
    middle = (size[1] / 2, size[0] / 2)
    ImageDraw.Draw(page).text(middle, "none", fill=MUTED, font=ImageFont.load_default(13), anchor="mm")
    return np.asarray(page)


def _manner(head: HeadPlan) -> str:
    usual = TARGET_OF_KIND[GRANULARITIES.get(head.granularity).kind]
    return "" if head.target == usual else f" as {head.target.replace('_', ' ')}"


def _visible(masks: Masks) -> str:
    """Say how much was visible of what."""
    num_patches = masks.is_masked.shape[2]
    words, parts = {0: "none", num_patches: "all"}, []
    for name, counts in zip(masks.granularities, (num_patches - masks.num_masked).T.tolist(), strict=True):
        low, high = min(counts), max(counts)
        parts.append(f"{name} {words.get(low, low)}" if low == high else f"{name} {low}–{high}")
    return f"visible of {num_patches} patches each: {', '.join(parts)}"
