"""Counts of floating point operations in matrix products, by torch or by fvcore.

The products of attention are included. Both tools miss them in fused attention: fvcore does not support it, nor do some
versions of torch on the CPU. Count with torch on the meta device, where attention is matmul, softmax, matmul.
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
    """A function that runs a module on maps, and on masks if the module takes any, and counts operations."""

    def __call__(self, module: nn.Module, maps: Mapping[str, Tensor], *masks: Masks) -> Mapping[str, int]:
        """Return the operations of each submodule that is called, by name; '' is the module itself."""


@dataclass(frozen=True)
class PartCost:
    """Cost of a part of a model."""

    flops: int
    parameters: int


@dataclass(frozen=True)
class ForwardCost:
    """Cost of the forward pass of one image."""

    part_costs: Mapping[str, PartCost]
    """Cost of embeddings, encoder and, in pre-training, decoder and heads; together the whole model."""
    stage_costs: Mapping[str, PartCost] = field(default_factory=dict)
    """Cost of each decoder stage; empty for a joint decoder."""
    teacher_flops: int = 0
    """Operations of a teacher's forward pass in a training step, which has no backward pass."""

    @property
    def flops(self) -> int:
        """Operations of all parts."""
        return sum(part.flops for part in self.part_costs.values())

    @property
    def step_flops(self) -> int:
        """Operations of a training step: a backward pass has about twice as many as the forward pass."""
        return 3 * self.flops + self.teacher_flops

    @property
    def parameters(self) -> int:
        """Parameters of all parts."""
        return sum(part.parameters for part in self.part_costs.values())


def count_with_torch(module: nn.Module, maps: Mapping[str, Tensor], *masks: Masks) -> dict[str, int]:
    """Count the operations that torch dispatches."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(maps, *masks)
    return {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def count_with_fvcore(module: nn.Module, maps: Mapping[str, Tensor], *masks: Masks) -> dict[str, int]:
    """Count the operations in a trace by fvcore, with a handler for fused attention and without norms."""
    with warnings.catch_warnings(), torch.no_grad():
        for deprecated in (FutureWarning, DeprecationWarning):  # of torch, about functions that fvcore uses
            warnings.simplefilter("ignore", deprecated)
        from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]

        analysis = FlopCountAnalysis(_TensorInputs(module, tuple(maps), masks), tuple(maps.values()))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _count_attention_products)
        analysis.set_op_handle("aten::layer_norm", lambda *_: 0)
        analysis.tracer_warnings("none")
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return {name.partition(".")[2]: 2 * products for name, products in analysis.by_module().items()}


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


class _TensorInputs(nn.Module):
    """A wrapper that takes tensors instead of mappings, as tracing requires."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], masks: tuple[Masks, ...]) -> None:
        super().__init__()
        self.module, self.names, self.masks = module, names, masks

    def forward(self, *maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        result = self.module(dict(zip(self.names, maps, strict=True)), *self.masks)
        return result if isinstance(result, Tensor) else tuple(result.values())


def _count_attention_products(inputs: list[Any], outputs: list[Any]) -> int:  # noqa: ARG001 - signature of fvcore
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # type: ignore[no-any-return]
