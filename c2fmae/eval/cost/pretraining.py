"""What pre-training costs: floating point operations and parameters of one image's forward pass, part by part.

A multiplication and the addition behind it are two operations. Matrix products are counted and nothing else, as is
usual; a step, with its backward pass, takes about three times as many.

>>> from c2fmae.eval.cost import cost_of
>>> from c2fmae.methods import METHODS
>>> cost = cost_of(METHODS.get("c2fmae")())
>>> {name: f"{part.flops / 1e9:.2f} GFLOP" for name, part in cost.parts.items()}
{'embeddings': '0.14 GFLOP', 'encoder': '17.18 GFLOP', 'decoder': '3.71 GFLOP', 'heads': '0.34 GFLOP'}
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from c2fmae.core.masks import Masks
from c2fmae.core.scene import GRANULARITIES
from c2fmae.masking import apportion
from c2fmae.methods import MaskedAutoencoding, MethodConfig, build_method
from c2fmae.models import MultiGranularAutoencoder, label_stride

Count = Callable[[nn.Module, Mapping[str, Tensor], Masks], Mapping[str, int]]
"""Runs a module over maps and masks; operations inside each module that is called, by name, its own as ''."""


@dataclass(frozen=True)
class Part:
    """What a part of a model takes."""

    flops: int
    parameters: int


@dataclass(frozen=True)
class Cost:
    """What one image's forward pass takes in pre-training."""

    parts: Mapping[str, Part]
    """Embeddings, encoder, decoder, heads: together all that there is."""
    stages: Mapping[str, Part]
    """What in the decoder is one stage's alone; a joint decoder has no such thing."""

    @property
    def flops(self) -> int:
        """Of all parts."""
        return sum(part.flops for part in self.parts.values())

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(part.parameters for part in self.parts.values())


def by_torch(module: nn.Module, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, int]:
    """Count what torch dispatches."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(maps, masks)
    return {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def by_fvcore(module: nn.Module, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, int]:
    """Count what fvcore finds in a trace: with fused attention, which it does not know, and without norms."""
    with warnings.catch_warnings(), torch.no_grad():
        for deprecated in (FutureWarning, DeprecationWarning):  # as torch calls what fvcore's import and traces use
            warnings.simplefilter("ignore", deprecated)
        from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]

        analysis = FlopCountAnalysis(_OfTensors(module, tuple(maps), masks), tuple(maps.values()))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_products)
        analysis.set_op_handle("aten::layer_norm", lambda *_: 0)
        analysis.tracer_warnings("none")
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return {name.partition(".")[2]: 2 * products for name, products in analysis.by_module().items()}


def cost_of(config: MethodConfig, *, count: Count = by_torch) -> Cost:
    """Return what a method costs in training at its image size; no weights are made and nothing is computed.

    The visible patches fall to the granularities as they do on average.
    """
    with torch.device("meta"):
        method = build_method(config)
    model = method.model.eval()
    assert isinstance(model, MultiGranularAutoencoder)
    maps, masks = _average_scene(method)
    flops = dict(count(model, {name: each.to("meta") for name, each in maps.items()}, masks.to("meta")))
    flops["heads"] = sum(flops[f"heads.{name}"] for name in model.heads)
    # Only on a CPU does a granularity embed its own patches and no others: elsewhere its list has a fixed length.
    embeddings = model.embeddings.to_empty(device="cpu")
    flops["embeddings"] = count(embeddings, maps, masks)[""]
    stages = getattr(model.decoder, "stages", None)  # a decoder from outside may have none, or others
    stages = stages if isinstance(stages, nn.ModuleDict) else {}
    return Cost(
        {name: Part(flops[name], _size(part)) for name, part in model.named_children()},
        {name: Part(flops.get(f"decoder.stages.{name}", 0), _size(stage)) for name, stage in stages.items()},
    )


class _OfTensors(nn.Module):
    """A module of maps and masks as one that a trace can enter: of tensors alone."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], masks: Masks) -> None:
        super().__init__()
        self.module, self.names, self.masks = module, names, masks

    def forward(self, *maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        result = self.module(dict(zip(self.names, maps, strict=True)), self.masks)
        return result if isinstance(result, Tensor) else tuple(result.values())


def _attention_products(inputs: list[Any], outputs: list[Any]) -> int:  # noqa: ARG001 - as fvcore calls it
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # type: ignore[no-any-return]


def _average_scene(method: MaskedAutoencoding) -> tuple[dict[str, Tensor], Masks]:
    """Return blank maps of one image, and masks whose budgets are the mean of those drawn."""
    config, patch = method.config, method.patch
    height, width = config.image_size
    names, num_patches = config.granularities, height // patch * (width // patch)
    num_visible = config.visible_of(num_patches)
    shares = torch.tensor([[config.concentration.get(name, 1.0) for name in names]], dtype=torch.float64)
    budgets = apportion(shares, torch.tensor([num_visible]), torch.full((1, len(names)), num_patches))
    is_masked = torch.arange(num_patches) >= budgets.unsqueeze(2)
    maps = {}
    for name in names:
        stride = label_stride(patch)
        if GRANULARITIES.get(name).kind == "ids":
            maps[name] = torch.zeros(1, height // stride, width // stride, dtype=torch.uint8)
        else:
            maps[name] = torch.zeros(1, config.channels_of(name), height, width)
    return maps, Masks.of(is_masked, names, num_visible=num_visible)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
