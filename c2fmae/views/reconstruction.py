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

from c2fmae.config.method import HeadPlan
from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.data import CentralView, Scenes
from c2fmae.data.loader import load_first_readable
from c2fmae.masking import random_mask
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.model_inputs import compute_patch_grid
from c2fmae.models.targets import DEFAULT_TARGETS, NormalizedPixelTarget
from c2fmae.report.drawing import (
    BACKGROUND_COLOUR,
    MUTED_COLOUR,
    Colour,
    colour_classes,
    colour_instances,
    draw_legend,
    draw_tile_sheet,
    hide_patches,
    list_class_fractions,
)

Tile = UInt8[np.ndarray, "height width 3"]
MapArray = Shaped[np.ndarray, "*channels rows columns"]

_MIN_TILE_SIDE = 128  # pixels that the sides of a tile have at the least
_AMOUNT_PATTERN = re.compile(r"\d+|\d+(\.\d+)?%")
_MAX_KEY_LENGTH = 40  # characters of a key: its end tells more than its beginning


class ReconstructionFigureConfig(Config):
    """Settings of `c2fmae view reconstruct`."""

    scenes: PositiveInt = 6
    seed: int = 0
    """Of the draw of what is visible."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Whose checkpoint is taken; the newest unless given."""
    average: bool = False
    """Take the average of the weights that `training.ema` kept."""


def select_scenes(method: MaskedAutoencoding, source_scenes: Scenes, count: int) -> SceneBatch:
    """Return at most so many scenes, spread evenly over a source and cut as the method takes them."""
    view = CentralView(**method.view_options)
    count = min(count, len(source_scenes))
    indices = [(2 * i + 1) * len(source_scenes) // (2 * count) for i in range(count)]
    return SceneBatch.stack([view(load_first_readable(source_scenes, place, [])) for place in indices])


def sample_training_masks(method: MaskedAutoencoding, scenes: SceneBatch, *, seed: int = 0) -> Masks:
    """Hide what the last step of a training would."""
    if missing := [name for name in method.config.granularities if name not in scenes.maps]:
        example = f"--visible {next(iter(scenes.maps))}:25%"
        raise UserError(f"the scenes lack {', '.join(missing)}: say what is visible of the others, as in {example}")
    return method.sample_masks(scenes, progress=1.0, generator=_mask_generator(seed))


def sample_requested_masks(
    method: MaskedAutoencoding, scenes: SceneBatch, visible: Mapping[str, str], *, seed: int = 0
) -> Masks:
    """Show of each granularity what is wanted, in the words of `sample_visible_masks`."""
    rows, columns = compute_patch_grid(method.config, method.patch_size, scenes)
    return sample_visible_masks(
        visible,
        method.config.granularities,
        batch_size=len(scenes),
        num_patches=rows * columns,
        generator=_mask_generator(seed),
    )


def sample_visible_masks(
    visible: Mapping[str, str],
    granularities: Sequence[str],
    *,
    batch_size: int,
    num_patches: int,
    generator: torch.Generator,
) -> Masks:
    """Show "all", "none", so many ("40") or such a share ("25%") of each granularity's patches; none where unsaid.

    Which ones is drawn for every image; by the same draw, more patches are the fewer and others.

    >>> draw, names = torch.Generator().manual_seed(0), ("semantic", "rgb")
    >>> sample_visible_masks({"rgb": "50%"}, names, batch_size=2, num_patches=8, generator=draw).num_masked.tolist()
    [[8, 4], [8, 4]]
    """
    for name in visible:
        if name not in granularities:
            raise UserError(f"--visible: {unknown_name_error('granularity', name, granularities)}")
    counts = [_parse_amount(name, visible.get(name, "none"), num_patches) for name in granularities]
    noise = torch.rand(batch_size * len(counts), num_patches, generator=generator)
    is_masked = random_mask(noise, num_patches - torch.tensor(counts).repeat(batch_size))
    return Masks.from_mask(is_masked.unflatten(0, (batch_size, len(counts))), granularities, num_visible=sum(counts))


def parse_visible(texts: Sequence[str]) -> dict[str, str]:
    """Return what `--visible` asks for, by granularity.

    >>> parse_visible(["rgb:all", "instance:40"])
    {'rgb': 'all', 'instance': '40'}
    """
    visible: dict[str, str] = {}
    for text in texts:
        name, is_pair, amount = text.partition(":")
        if not is_pair or not name or not amount:
            raise UserError(f"--visible {text}: expected a granularity and how much of it, as in rgb:all")
        if name in visible:
            raise UserError(f"--visible {text}: {name} is there twice")
        visible[name] = amount
    return visible


def draw_reconstruction(
    method: MaskedAutoencoding,
    scenes: SceneBatch,
    masks: Masks,
    *,
    model_name: str = "",
    class_names: Sequence[str] = (),
) -> Image.Image:
    """Draw a row for each scene: of each granularity the truth, what the encoder saw of it, and what the heads say.

    A map that the scenes lack is drawn as predicted. `model_name` says whose predictions these are.
    """
    device = next(method.model.parameters()).device
    predicted = method.predict(scenes.to(device), masks.to(device)).to("cpu")
    scenes, masks = scenes.to("cpu"), masks.to("cpu")
    grid = compute_patch_grid(method.config, method.patch_size, scenes)
    side = method.patch_size * -(-_MIN_TILE_SIDE // (min(grid) * method.patch_size))
    size = (grid[0] * side, grid[1] * side)
    columns, class_ids = dict[str, Sequence[Tile]](), list[Tensor]()
    notes = ["Patches that were visible are pasted into the predictions."]
    for index, name in enumerate(masks.granularities):
        title, target_maps = "photo" if name == "rgb" else f"{name} map", scenes.maps.get(name)
        is_masked = masks.is_masked[:, index].unflatten(1, grid).numpy()
        columns[title] = truth = _map_tiles(name, target_maps, target_maps, len(scenes), size)
        columns[f"{title},\nwhat is seen"] = [
            hide_patches(tile, hidden, opacity=1) for tile, hidden in zip(truth, is_masked, strict=True)
        ]
        maps = {head: predicted.maps.get(head.name) for head in method.config.head_plans() if head.granularity == name}
        for head, prediction in maps.items():
            columns[f"{title},\npredicted{_target_suffix(head)}"] = _map_tiles(
                name, prediction, target_maps, len(scenes), size
            )
            target = method.objectives[head.name].target
            if getattr(target, "needs_true_map", False):
                scope = " of each patch" if isinstance(target, NormalizedPixelTarget) else ""
                notes.append(
                    f"Mean and deviation{scope} borrowed from the truth: {title}, predicted{_target_suffix(head)}."
                )
        if GRANULARITIES.get(name).colouring == "classes":
            class_ids += [each.flatten(1) for each in (target_maps, *maps.values()) if each is not None]
    if class_ids:
        columns["classes"] = [
            draw_legend(_class_colours(ids.numpy(), class_names), *size) for ids in torch.cat(class_ids, dim=1)
        ]
    return draw_tile_sheet(
        list(zip(*columns.values(), strict=True)),
        column_titles=list(columns),
        row_titles=[key if len(key) <= _MAX_KEY_LENGTH else f"... {key[4 - _MAX_KEY_LENGTH :]}" for key in scenes.keys],
        title="What is made of hidden patches",
        subtitle=f"{model_name} · {_describe_visible(masks)}" if model_name else _describe_visible(masks),
        footer="\n".join(notes),
    )


def _mask_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "masks", 0))


def _parse_amount(name: str, amount: str, num_patches: int) -> int:
    """Return how many of the patches an amount is."""
    if amount in ("all", "none"):
        return num_patches if amount == "all" else 0
    if not _AMOUNT_PATTERN.fullmatch(amount):
        expected = "all, none, a number of patches or a percentage of them"
        raise UserError(f"--visible {name}:{amount}: expected {expected}, as in {name}:40 or {name}:25%")
    count = round(float(amount[:-1]) / 100 * num_patches) if amount.endswith("%") else int(amount)
    if count > num_patches:
        raise UserError(f"--visible {name}:{amount}: there are {num_patches} patches of {name}")
    return count


def _map_tiles(
    name: str, maps: Tensor | None, value_range_map: Tensor | None, count: int, size: tuple[int, int]
) -> list[Tile]:
    """Return a granularity's maps as tiles, each cell a square of pixels; where there are none, the word."""
    if maps is None:
        return [_empty_tile(size)] * count
    zoom, value_range_map = size[0] // maps.shape[-2], maps if value_range_map is None else value_range_map
    tiles = [_colour_map(name, *pair) for pair in zip(maps.numpy(), value_range_map.numpy(), strict=True)]
    return [tile.repeat(zoom, axis=0).repeat(zoom, axis=1) for tile in tiles]


def _colour_map(name: str, values: MapArray, value_range_map: MapArray) -> Tile:
    """Return a map in its granularity's colours; heat runs from the lowest to the highest value of another map."""
    match GRANULARITIES.get(name).colouring:
        case "classes":
            return colour_classes(values)
        case "instances":
            return colour_instances(values)
        case "heat":
            low, high = float(value_range_map.min()), float(value_range_map.max())
            grey = (255 * (values - low) / max(high - low, 1e-6)).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        case "photo":
            return np.broadcast_to(values[:3], (3, *values.shape[1:])).transpose(1, 2, 0)


def _class_colours(ids: Shaped[np.ndarray, " cell"], names: Sequence[str]) -> dict[str, Colour]:
    return {name: colour for name, _, colour in list_class_fractions(ids, names)}


def _empty_tile(size: tuple[int, int]) -> Tile:
    page = Image.new("RGB", size[::-1], BACKGROUND_COLOUR)
    middle = (size[1] / 2, size[0] / 2)
    ImageDraw.Draw(page).text(middle, "none", fill=MUTED_COLOUR, font=ImageFont.load_default(13), anchor="mm")
    return np.asarray(page)


def _target_suffix(head: HeadPlan) -> str:
    usual = DEFAULT_TARGETS[GRANULARITIES.get(head.granularity).kind]
    return "" if head.target == usual else f" as {head.target.replace('_', ' ')}"


def _describe_visible(masks: Masks) -> str:
    """Say how much was visible of what."""
    num_patches = masks.is_masked.shape[2]
    amount_names, descriptions = {0: "none", num_patches: "all"}, []
    for name, counts in zip(masks.granularities, (num_patches - masks.num_masked).T.tolist(), strict=True):
        low, high = min(counts), max(counts)
        descriptions.append(f"{name} {amount_names.get(low, low)}" if low == high else f"{name} {low}–{high}")
    return f"visible of {num_patches} patches each: {', '.join(descriptions)}"
