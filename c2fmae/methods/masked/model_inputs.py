"""Conversion of scenes to model inputs, and of predictions back to scenes, by the kind of each map."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.pixels import standardise, trimmed_mean_std
from c2fmae.core.scene import SceneBatch
from c2fmae.methods.masked.map_checks import check_continuous_map, check_id_map, check_images, require_map
from c2fmae.models.patches import compute_grid, label_stride, unpatchify

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]


def prepare_inputs(config: MaskedConfig, patch_size: int, scenes: SceneBatch) -> dict[str, Tensor]:
    """Return the inputs of the method's model."""
    check_inputs(config, patch_size, scenes)
    return standardise_inputs(config, scenes)


def check_inputs(config: MaskedConfig, patch_size: int, scenes: SceneBatch) -> None:
    """Raise a UserError if the scenes do not fit the method's model."""
    check_input_maps(scenes, {name: config.num_channels(name) for name in config.granularities}, patch_size)


def standardise_inputs(config: MaskedConfig, scenes: SceneBatch) -> dict[str, Tensor]:
    """Return the inputs of the method's model from scenes that `check_inputs` has checked."""
    return standardise_maps({name: scenes.maps[name] for name in config.granularities}, config.mean_and_std)


def prepare_input_maps(
    scenes: SceneBatch, num_channels: Mapping[str, int], patch_size: int, mean_and_std: Callable[[str], MeanStd]
) -> dict[str, Tensor]:
    """Return the inputs of a model: standardised images, and ids at the label stride.

    `num_channels` maps the name of each input to its channels or classes; `mean_and_std` returns the mean and
    standard deviation of an image granularity. Raise a UserError if the scenes do not fit.
    """
    check_input_maps(scenes, num_channels, patch_size)
    return standardise_maps({name: scenes.maps[name] for name in num_channels}, mean_and_std)


def check_input_maps(scenes: SceneBatch, num_channels: Mapping[str, int], patch_size: int) -> None:
    """Raise a UserError if the scenes do not fit a model with these inputs."""
    for name, count in num_channels.items():
        kind, values = GRANULARITIES.get(name).kind, require_map(scenes, name)
        if kind == "ids":
            check_id_map(name, scenes, count, patch_size=patch_size)
        elif kind == "image":
            check_images(name, values, count)
        else:
            check_continuous_map(name, scenes)


def standardise_maps(maps: Mapping[str, Tensor], mean_and_std: Callable[[str], MeanStd]) -> dict[str, Tensor]:
    """Return images and continuous maps standardised, and id maps as they are."""
    inputs = {}
    for name, values in maps.items():
        match GRANULARITIES.get(name).kind:
            case "image":
                inputs[name] = standardise(values, *_mean_std_tensors(mean_and_std(name), values.device))
            case "continuous":
                mean, std = trimmed_mean_std(values)
                inputs[name] = ((values - mean) / std).unsqueeze(1)
            case _:
                inputs[name] = values
    return inputs


def denormalise_map(config: MaskedConfig, name: str, prediction: Tensor, original: Tensor) -> Tensor:
    """Invert `prepare_inputs` for the prediction of a map; `original` is the map of the scenes."""
    kind = GRANULARITIES.get(name).kind
    if kind == "image":
        mean, std = (values.view(-1, 1, 1) for values in _mean_std_tensors(config.mean_and_std(name), original.device))
        return ((prediction * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    if kind == "continuous":
        mean, deviation = trimmed_mean_std(original)
        return prediction.squeeze(1) * deviation + mean
    return prediction


def paste_visible(
    prediction: Shaped[Tensor, "batch *map"],
    original: Shaped[Tensor, "batch *map"],
    is_masked: Bool[Tensor, "batch patch"],
) -> Shaped[Tensor, "batch *map"]:
    """Return the prediction in hidden patches, and the original map elsewhere."""
    height, width = original.shape[-2:]
    side = round((height * width / is_masked.shape[1]) ** 0.5)
    hidden = unpatchify(is_masked.unsqueeze(2).expand(-1, -1, side**2), (height // side, width // side))
    return torch.where(hidden if original.ndim == 3 else hidden.unsqueeze(1), prediction, original)


def fill_missing_maps(config: MaskedConfig, patch_size: int, scenes: SceneBatch, masks: Masks) -> SceneBatch:
    """Add placeholders for missing maps that are hidden entirely: the model uses only their size."""
    missing = [name for name in config.granularities if name not in scenes.maps]
    if not missing:
        return scenes
    (rows, columns), maps = compute_patch_grid(config, patch_size, scenes), dict(scenes.maps)
    device = next(iter(maps.values())).device
    for name in missing:
        if not masks.is_masked[:, config.granularities.index(name)].all():
            raise UserError(
                f"{name}: the masks have visible patches, but the scenes have no such map. Hide all of {name}"
            )
        kind = GRANULARITIES.get(name).kind
        side = patch_size // (label_stride(patch_size) if kind == "ids" else 1)
        channels = [config.num_channels(name)] if kind == "image" else []
        size, value = (len(scenes), *channels, rows * side, columns * side), IGNORE if kind == "ids" else 0
        maps[name] = torch.full(size, value, dtype=torch.uint8, device=device)
    return SceneBatch(scenes.keys, maps, scenes.labels)


def compute_patch_grid(config: MaskedConfig, patch_size: int, scenes: SceneBatch) -> tuple[int, int]:
    """Return the rows and columns of patches, from the finest available map."""
    names = config.granularities
    name = next((name for name in reversed(names) if name in scenes.maps), names[-1])
    stride = label_stride(patch_size) if GRANULARITIES.get(name).kind == "ids" else 1
    return compute_grid(name, require_map(scenes, name), patch_size // stride)


@lru_cache(maxsize=64)
def _mean_std_tensors(normalisation: MeanStd, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation on a device; cached, since a copy to a GPU waits for its queue."""
    mean, std = (torch.tensor(values).to(device, non_blocking=True) for values in normalisation)
    return mean, std
