"""Reconstructions of a pre-trained model: true maps, visible patches and predictions side by side."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from c2fmae.config.masked_method import HeadPlan
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes
from c2fmae.masking import random_mask
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.model_inputs import compute_patch_grid
from c2fmae.models.targets import DEFAULT_TARGETS, NormalizedPixelTarget
from c2fmae.report.drawing import (
    BACKGROUND_COLOUR,
    MUTED_COLOUR,
    Colour,
    Tile,
    colour_classes,
    colour_instances,
    draw_legend,
    draw_tile_sheet,
    hide_patches,
    image_to_tile,
    list_class_fractions,
)
from c2fmae.views.scenes import load_evenly_spaced, mask_generator

MapArray = Shaped[np.ndarray, "*channels rows columns"]

_MIN_TILE_SIDE = 128  # pixels
_AMOUNT_PATTERN = re.compile(r"\d+|\d+(\.\d+)?%")
_MAX_KEY_LENGTH = 40  # characters; only the end of a longer key is shown


def select_scenes(method: MaskedAutoencoding, source_scenes: Scenes, count: int) -> SceneBatch:
    """Return at most `count` scenes, evenly spaced over the data and cropped for the method."""
    view = CentralView(**method.view_options)
    return SceneBatch.stack([view(scene) for scene in load_evenly_spaced(source_scenes, count)])


def sample_training_masks(method: MaskedAutoencoding, scenes: SceneBatch, *, seed: int = 0) -> Masks:
    """Return masks as they are sampled at the end of training."""
    if missing := [name for name in method.config.granularities if name not in scenes.maps]:
        example = f"--visible {next(iter(scenes.maps))}:25%"
        raise UserError(f"the data has no maps of {', '.join(missing)}. Choose the visible patches, as in {example}")
    return method.sample_masks(scenes, progress=1.0, generator=mask_generator(seed))


def sample_requested_masks(
    method: MaskedAutoencoding, scenes: SceneBatch, visible: Mapping[str, str], *, seed: int = 0
) -> Masks:
    """Return masks with the requested amounts visible (see `sample_visible_masks`)."""
    rows, columns = compute_patch_grid(method.config, method.patch_size, scenes)
    return sample_visible_masks(
        visible,
        method.config.granularities,
        batch_size=len(scenes),
        num_patches=rows * columns,
        generator=mask_generator(seed),
    )


def sample_visible_masks(
    visible: Mapping[str, str],
    granularities: Sequence[str],
    *,
    batch_size: int,
    num_patches: int,
    generator: torch.Generator,
) -> Masks:
    """Return masks that show "all", "none", a number ("40") or a percentage ("25%") of each granularity's patches.

    Granularities without an amount are hidden. Patches are drawn for each image; with the same generator state a larger
    amount contains the smaller one.

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
    """Return the amounts of `--visible` by granularity.

    >>> parse_visible(["rgb:all", "instance:40"])
    {'rgb': 'all', 'instance': '40'}
    """
    visible: dict[str, str] = {}
    for text in texts:
        name, is_pair, amount = text.partition(":")
        if not is_pair or not name or not amount:
            raise UserError(f"--visible {text}: expected GRANULARITY:AMOUNT, as in rgb:all")
        if name in visible:
            raise UserError(f"--visible {text}: {name} is given twice. Remove one")
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
    """Draw a row for each scene: the true map, its visible patches and the prediction, for each granularity.

    For granularities that the scenes lack, only the prediction is drawn. `model_name` is part of the subtitle.
    """
    device = next(method.model.parameters()).device
    predicted = method.predict(scenes.to(device), masks.to(device)).to("cpu")
    scenes, masks = scenes.to("cpu"), masks.to("cpu")
    grid = compute_patch_grid(method.config, method.patch_size, scenes)
    side = method.patch_size * -(-_MIN_TILE_SIDE // (min(grid) * method.patch_size))
    size = (grid[0] * side, grid[1] * side)
    columns, class_ids = dict[str, Sequence[Tile]](), list[Tensor]()
    notes = ["Visible patches are pasted into the predictions."]
    for index, name in enumerate(masks.granularities):
        title, target_maps = "image" if name == "rgb" else f"{name} map", scenes.maps.get(name)
        is_masked = masks.is_masked[:, index].unflatten(1, grid).numpy()
        columns[title] = true_tiles = _map_tiles(name, target_maps, target_maps, len(scenes), size)
        columns[f"{title},\nvisible"] = [
            hide_patches(tile, hidden, opacity=1) for tile, hidden in zip(true_tiles, is_masked, strict=True)
        ]
        maps = {head: predicted.maps.get(head.name) for head in method.config.head_plans() if head.granularity == name}
        for head, prediction in maps.items():
            columns[f"{title},\npredicted{_target_suffix(head)}"] = _map_tiles(
                name, prediction, target_maps, len(scenes), size
            )
            target = method.objectives[head.name].target
            if getattr(target, "needs_true_map", False):
                scope = "each patch" if isinstance(target, NormalizedPixelTarget) else "each map"
                notes.append(f"{title}, predicted{_target_suffix(head)}: with the true mean and deviation of {scope}.")
        if GRANULARITIES.get(name).colouring == "classes":
            class_ids += [ids.flatten(1) for ids in (target_maps, *maps.values()) if ids is not None]
    if class_ids:
        columns["classes"] = [
            draw_legend(_class_colours(ids.numpy(), class_names), *size) for ids in torch.cat(class_ids, dim=1)
        ]
    return draw_tile_sheet(
        list(zip(*columns.values(), strict=True)),
        column_titles=list(columns),
        row_titles=[key if len(key) <= _MAX_KEY_LENGTH else f"... {key[4 - _MAX_KEY_LENGTH :]}" for key in scenes.keys],
        title="Reconstruction of hidden patches",
        subtitle=f"{model_name} · {_describe_visible(masks)}" if model_name else _describe_visible(masks),
        footer="\n".join(notes),
    )


def _parse_amount(name: str, amount: str, num_patches: int) -> int:
    """Return an amount as a number of patches."""
    if amount in ("all", "none"):
        return num_patches if amount == "all" else 0
    if not _AMOUNT_PATTERN.fullmatch(amount):
        expected = "all, none, a number of patches or a percentage of them"
        raise UserError(f"--visible {name}:{amount}: expected {expected}, as in {name}:40 or {name}:25%")
    count = round(float(amount[:-1]) / 100 * num_patches) if amount.endswith("%") else int(amount)
    if count > num_patches:
        raise UserError(f"--visible {name}:{amount}: expected at most {num_patches}, the number of patches of {name}")
    return count


def _map_tiles(
    name: str, maps: Tensor | None, value_range_map: Tensor | None, count: int, size: tuple[int, int]
) -> list[Tile]:
    """Return the tiles of a granularity's maps, each cell a square of pixels; without maps, tiles that read "none"."""
    if maps is None:
        return [_empty_tile(size)] * count
    zoom, value_range_map = size[0] // maps.shape[-2], maps if value_range_map is None else value_range_map
    tiles = [_colour_map(name, *pair) for pair in zip(maps.numpy(), value_range_map.numpy(), strict=True)]
    return [tile.repeat(zoom, axis=0).repeat(zoom, axis=1) for tile in tiles]


def _colour_map(name: str, values: MapArray, value_range_map: MapArray) -> Tile:
    """Return a map in the colours of its granularity; `value_range_map` gives the range of continuous values."""
    match GRANULARITIES.get(name).colouring:
        case "classes":
            return colour_classes(values)
        case "instances":
            return colour_instances(values)
        case "heat":
            low, high = float(value_range_map.min()), float(value_range_map.max())
            grey = (255 * (values - low) / max(high - low, 1e-6)).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        case "image":
            return image_to_tile(values)


def _class_colours(ids: Shaped[np.ndarray, " cell"], names: Sequence[str]) -> dict[str, Colour]:
    return {name: colour for name, _, colour in list_class_fractions(ids, names)}


def _empty_tile(size: tuple[int, int]) -> Tile:
    page = Image.new("RGB", size[::-1], BACKGROUND_COLOUR)
    middle = (size[1] / 2, size[0] / 2)
    ImageDraw.Draw(page).text(middle, "none", fill=MUTED_COLOUR, font=ImageFont.load_default(13), anchor="mm")
    return np.asarray(page)


def _target_suffix(head: HeadPlan) -> str:
    default = DEFAULT_TARGETS[GRANULARITIES.get(head.granularity).kind]
    return "" if head.target.name == default else f" as {head.target.name.replace('_', ' ')}"


def _describe_visible(masks: Masks) -> str:
    """Return a sentence with the number of visible patches of each granularity."""
    num_patches = masks.is_masked.shape[2]
    amount_names, descriptions = {0: "none", num_patches: "all"}, []
    for name, counts in zip(masks.granularities, (num_patches - masks.num_masked).T.tolist(), strict=True):
        low, high = min(counts), max(counts)
        descriptions.append(f"{name} {amount_names.get(low, low)}" if low == high else f"{name} {low}–{high}")
    return f"visible of {num_patches} patches each: {', '.join(descriptions)}"
