"""Protocol by which a model declares its layers: for layer-wise learning rates, sharding and compilation."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class LayeredModel(Protocol):
    """A model that lists its layers. They are not inferred from the names of parameters."""

    def trunk_layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """Return the parameters of the ViT by depth: embeddings and tokens first, then those of each block.

        Parameters that are in no layer train at the full rate: norms after the blocks, decoders and heads.
        """
        ...

    def sharding_units(self) -> Sequence[nn.Module]:
        """Return the modules that FSDP gathers one at a time, in the order in which they run: the blocks.

        With `training.compile=blocks` each of them is compiled for itself.
        """
        ...


def list_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the `sharding_units` of a model; an empty list for a model that declares none."""
    return [*model.sharding_units()] if isinstance(model, LayeredModel) else []
