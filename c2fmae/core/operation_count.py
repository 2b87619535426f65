"""Floating point operations of matrix products, counted by torch or by fvcore.

Attention's products are among them. Both tools miss them where attention is one fused operation: fvcore does not know
it, and torch, in some versions, not on a CPU. So torch's are counted on the meta device, where nothing is computed and
attention is matmul, softmax, matmul.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from c2fmae.core.masks import Masks


@runtime_checkable
class OperationCounter(Protocol):
    """Runs a module over maps, and masks if it takes any."""

    def __call__(self, module: nn.Module, maps: Mapping[str, Tensor], *masks: Masks) -> Mapping[str, int]:
        """Return the operations inside each module that is called, by name; those of the module as ''."""


@dataclass(frozen=True)
class PartCost:
    """What a part of a model takes."""

    flops: int
    parameters: int


@dataclass(frozen=True)
class ForwardCost:
    """What one image's forward pass takes."""

    part_costs: Mapping[str, PartCost]
    """Embeddings, encoder, and in pre-training decoder and heads: together all that there is."""
    stage_costs: Mapping[str, PartCost] = field(default_factory=dict)
    """What in the decoder is one stage's alone; a joint decoder has no such thing."""

    @property
    def flops(self) -> int:
        """Of all parts."""
        return sum(part.flops for part in self.part_costs.values())

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(part.parameters for part in self.part_costs.values())


def count_with_torch(module: nn.Module, maps: Mapping[str, Tensor], *masks: Masks) -> dict[str, int]:
    """Count what torch dispatches."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(maps, *masks)
    return {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def count_with_fvcore(module: nn.Module, maps: Mapping[str, Tensor], *masks: Masks) -> dict[str, int]:
    """Count what fvcore finds in a trace: with fused attention, which it does not know, and without norms."""
    with warnings.catch_warnings(), torch.no_grad():
        for deprecated in (FutureWarning, DeprecationWarning):  # as torch calls what fvcore's import and traces use
            warnings.simplefilter("ignore", deprecated)
        from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]

        analysis = FlopCountAnalysis(_TensorInputs(module, tuple(maps), masks), tuple(maps.values()))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _count_attention_products)
        analysis.set_op_handle("aten::layer_norm", lambda *_: 0)
        analysis.tracer_warnings("none")
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return {name.partition(".")[2]: 2 * products for name, products in analysis.by_module().items()}


def count_parameters(module: nn.Module) -> int:
    """Return how many parameters a module has; tables that are not learned are none."""
    return sum(parameter.numel() for parameter in module.parameters())


class _TensorInputs(nn.Module):
    """A module of maps and masks as one that a trace can enter: of tensors alone."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], masks: tuple[Masks, ...]) -> None:
        super().__init__()
        self.module, self.names, self.masks = module, names, masks

    def forward(self, *maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        result = self.module(dict(zip(self.names, maps, strict=True)), *self.masks)
        return result if isinstance(result, Tensor) else tuple(result.values())


def _count_attention_products(inputs: list[Any], outputs: list[Any]) -> int:  # noqa: ARG001 - as fvcore calls it
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # type: ignore[no-any-return]
