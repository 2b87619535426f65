"""Protocol by which a model declares its layers, for layer-wise learning rates and for sharding."""

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
        """Return the modules that FSDP gathers one at a time, in the order in which they run: the blocks."""
        ...
