"""Noise scenes, and methods with a step of a few milliseconds."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.granularity import IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import METHODS, MaskedAutoencoding, build_method

NUM_CLASSES = {"semantic": 6, "instance": 5}
TINY_METHOD_OVERRIDES = [
    "encoder.name=test_vit",
    "decoder.options.dim=32",
    "decoder.options.num_heads=4",
    "decoder.options.depth=1",
    *(f"channels.{name}={number}" for name, number in NUM_CLASSES.items()),
]

MASKED_METHODS = [name for name in METHODS if isinstance(METHODS.get(name)(), MaskedConfig)]
"""Names of the methods of masked autoencoding."""


def draw_noise_scenes(
    batch: int = 2, size: tuple[int, int] = (32, 32), *, stride: int = 4, channels: int = 3, seed: int = 0
) -> SceneBatch:
    """Return scenes of random pixels and ids; a tenth of the cells of id maps is unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    cells = (batch, size[0] // stride, size[1] // stride)
    maps = {}
    for name, num_classes in NUM_CLASSES.items():
        ids = torch.randint(num_classes, cells, dtype=torch.uint8, generator=generator)
        maps[name] = ids.masked_fill(torch.rand(cells, generator=generator) < 0.1, IGNORE)
    maps["rgb"] = torch.randint(256, (batch, channels, *size), dtype=torch.uint8, generator=generator)
    return SceneBatch(tuple(f"scene-{index}" for index in range(batch)), maps, tuple(range(batch)))


def slice_scenes(scenes: SceneBatch, first: int, last: int) -> SceneBatch:
    """Return scenes `first` to `last` - 1."""
    return SceneBatch(scenes.keys[first:last], {name: map_[first:last] for name, map_ in scenes.maps.items()})


def slice_masks(masks: Masks, first: int, last: int) -> Masks:
    """Return the masks of images `first` to `last` - 1."""
    return Masks(masks.granularities, masks.is_masked[first:last], masks.visible_idx[first:last])


def to_float64(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in double precision, in which no CPU's way of rounding is seen; ids as they are."""
    return {name: each.double() if each.is_floating_point() else each for name, each in tensors.items()}


def make_tiny_config(
    name: str = "c2fmae",
    *overrides: str,
    size: tuple[int, int] = (32, 32),
    granularities: Sequence[str] = (),
) -> MaskedConfig:
    """Return a tiny config of a registered method, of its own granularities unless others are given."""
    settings = [*TINY_METHOD_OVERRIDES, f"image_size={list(size)}"]
    if granularities:
        settings.append(f"granularities=[{', '.join(granularities)}]")
    return override_method(name, *settings, *overrides)


def override_method(name: str, *overrides: str) -> MaskedConfig:
    """Return the config of a method with the default fraction of visible patches, and overrides that it has."""
    config: MaskedConfig = METHODS.get(name)()
    if config.decoder.name == "direct":  # which has no options
        overrides = tuple(each for each in overrides if not each.startswith("decoder.options."))
    return config.override(["num_visible=null", *overrides])


def build_tiny_method(
    name: str = "c2fmae",
    *overrides: str,
    size: tuple[int, int] = (32, 32),
    granularities: Sequence[str] = (),
) -> MaskedAutoencoding:
    """Build the method of `make_tiny_config`."""
    return build_method(make_tiny_config(name, *overrides, size=size, granularities=granularities))


def child_names(method: MaskedAutoencoding, submodule: str) -> list[str]:
    """Return the names of the children of a submodule."""
    return [name for name, _ in method.model.get_submodule(submodule).named_children()]


def named_gradients(method: MaskedAutoencoding) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the name and the gradient of every parameter."""
    for name, parameter in method.model.named_parameters():
        yield name, parameter.grad


def perturb_parameters(model: nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter: with initial zeros and ones, swapped parameters would go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
