"""Scenes of noise, and methods so small that a step takes milliseconds."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from c2fmae.config.method import MethodConfig
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


def draw_noise_scenes(
    batch: int = 2, size: tuple[int, int] = (32, 32), *, stride: int = 4, channels: int = 3, seed: int = 0
) -> SceneBatch:
    """Random bytes and ids; some cells of the id maps are not labelled."""
    generator = torch.Generator().manual_seed(seed)
    cells = (batch, size[0] // stride, size[1] // stride)
    maps = {}
    for name, num_classes in NUM_CLASSES.items():
        ids = torch.randint(num_classes, cells, dtype=torch.uint8, generator=generator)
        maps[name] = ids.masked_fill(torch.rand(cells, generator=generator) < 0.1, IGNORE)
    maps["rgb"] = torch.randint(256, (batch, channels, *size), dtype=torch.uint8, generator=generator)
    return SceneBatch(tuple(f"scene-{index}" for index in range(batch)), maps, tuple(range(batch)))


def slice_scenes(scenes: SceneBatch, first: int, last: int) -> SceneBatch:
    """The scenes from `first` up to, but without, `last`."""
    return SceneBatch(scenes.keys[first:last], {name: each[first:last] for name, each in scenes.maps.items()})


def slice_masks(masks: Masks, first: int, last: int) -> Masks:
    """The masks of such a part."""
    return Masks(masks.granularities, masks.is_masked[first:last], masks.visible_idx[first:last])


def to_float64(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in double precision, in which no CPU's way of rounding is seen; ids as they are."""
    return {name: each.double() if each.is_floating_point() else each for name, each in tensors.items()}


def make_tiny_config(
    name: str = "c2fmae",
    *overrides: str,
    size: tuple[int, int] = (32, 32),
    granularities: Sequence[str] = (),
) -> MethodConfig:
    """A registered method, made tiny, of all its granularities or of these."""
    settings = [*TINY_METHOD_OVERRIDES, f"image_size={list(size)}"]
    if granularities:
        settings.append(f"granularities=[{', '.join(granularities)}]")
    return METHODS.get(name)().override([*settings, *overrides])


def build_tiny_method(
    name: str = "c2fmae",
    *overrides: str,
    size: tuple[int, int] = (32, 32),
    granularities: Sequence[str] = (),
) -> MaskedAutoencoding:
    """The method of `tiny_config`."""
    return build_method(make_tiny_config(name, *overrides, size=size, granularities=granularities))


def child_names(method: MaskedAutoencoding, submodule: str) -> list[str]:
    """The names in a part of the model."""
    return [name for name, _ in method.model.get_submodule(submodule).named_children()]


def named_gradients(method: MaskedAutoencoding) -> Iterator[tuple[str, Tensor | None]]:
    """Every parameter's name and gradient."""
    for name, parameter in method.model.named_parameters():
        yield name, parameter.grad


def perturb_parameters(model: nn.Module, seed: int = 0) -> None:
    """Move every parameter away from where it starts: zeros and ones hide what is mixed up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
