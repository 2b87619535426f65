"""From scenes to the maps that a model takes, and from predictions back to scenes; by the kinds of the maps."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.pixels import standardise
from c2fmae.core.scene import GRANULARITIES, IGNORE, SceneBatch
from c2fmae.data.transforms import middle_statistics
from c2fmae.methods.config import MethodConfig
from c2fmae.methods.map_checks import check_continuous, check_ids, check_photos, map_of
from c2fmae.models.patches import grid_of, label_stride, unpatchify

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def prepare(config: MethodConfig, patch: int, scenes: SceneBatch) -> dict[str, Tensor]:
    """Return the maps as the method's model takes them."""
    channels = {name: config.channels_of(name) for name in config.granularities}
    return prepare_maps(scenes, channels, patch, config.normalisation)


def prepare_maps(
    scenes: SceneBatch, channels: Mapping[str, int], patch: int, normalisation: Callable[[str], Normalisation]
) -> dict[str, Tensor]:
    """Return maps as a model takes them: photos standardised, ids at the label stride; all checked.

    `channels` names the maps, with their classes and channels; `normalisation` gives those of a photo mean and
    deviation.
    """
    maps = {}
    for name, count in channels.items():
        kind, given = GRANULARITIES.get(name).kind, map_of(scenes, name)
        if kind == "ids":
            check_ids(name, scenes, count, patch=patch)
            maps[name] = given
        elif kind == "image":
            check_photos(name, given, count)
            maps[name] = standardise(given, *_on_device(normalisation(name), given.device))
        else:
            check_continuous(name, scenes)
            mean, deviation = middle_statistics(given)
            maps[name] = ((given - mean) / deviation).unsqueeze(1)
    return maps


def restore(config: MethodConfig, name: str, picture: Tensor, given: Tensor) -> Tensor:
    """Undo what `prepare` did to a map."""
    kind = GRANULARITIES.get(name).kind
    if kind == "image":
        mean, std = (values.view(-1, 1, 1) for values in _on_device(config.normalisation(name), given.device))
        return ((picture * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    if kind == "continuous":
        mean, deviation = middle_statistics(given)
        return picture.squeeze(1) * deviation + mean
    return picture


def paste(
    picture: Shaped[Tensor, "batch *map"], given: Shaped[Tensor, "batch *map"], is_masked: Bool[Tensor, "batch patch"]
) -> Shaped[Tensor, "batch *map"]:
    """Return the picture in hidden patches and what was given elsewhere."""
    height, width = given.shape[-2:]
    side = round((height * width / is_masked.shape[1]) ** 0.5)
    hidden = unpatchify(is_masked.unsqueeze(2).expand(-1, -1, side**2), (height // side, width // side))
    return torch.where(hidden if given.ndim == 3 else hidden.unsqueeze(1), picture, given)


def with_blanks(config: MethodConfig, patch: int, scenes: SceneBatch, masks: Masks) -> SceneBatch:
    """Stand in for missing maps that are wholly hidden, of which only the size matters."""
    absent = [name for name in config.granularities if name not in scenes.maps]
    if not absent:
        return scenes
    (rows, columns), maps = patch_grid(config, patch, scenes), dict(scenes.maps)
    device = next(iter(maps.values())).device
    for name in absent:
        if not masks.is_masked[:, config.granularities.index(name)].all():
            raise UserError(f"the scenes lack {name}, of which the masks show patches")
        kind = GRANULARITIES.get(name).kind
        side = patch // (label_stride(patch) if kind == "ids" else 1)
        channels = [config.channels_of(name)] if kind == "image" else []
        size, value = (len(scenes), *channels, rows * side, columns * side), IGNORE if kind == "ids" else 0
        maps[name] = torch.full(size, value, dtype=torch.uint8, device=device)
    return SceneBatch(scenes.keys, maps, scenes.labels)


def patch_grid(config: MethodConfig, patch: int, scenes: SceneBatch) -> tuple[int, int]:
    """Return the rows and columns of patches, by the finest map that is there."""
    names = config.granularities
    name = next((name for name in reversed(names) if name in scenes.maps), names[-1])
    stride = label_stride(patch) if GRANULARITIES.get(name).kind == "ids" else 1
    return grid_of(name, map_of(scenes, name), patch // stride)


def _on_device(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).to(device, non_blocking=True) for values in normalisation)
    return mean, std
