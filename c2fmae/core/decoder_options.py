"""Options of the built-in decoders, without torch, so that recipes can use them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError

Context = Literal["all", "visible"]
Carry = Literal["last", "all"]


class BlockOptions(Config):
    """Options that every built-in decoder has."""

    order: tuple[str, ...] | None = None
    """Granularities in the order of their stages. By default, that of the method: coarse to fine."""
    dim: Annotated[int, Field(ge=4, multiple_of=4)] = 256
    num_heads: PositiveInt = 8
    depth: Annotated[int, Field(ge=0)] = 2
    """Number of self-attention blocks: of each stage, after its first block, or of the whole `joint` decoder."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of the MLPs, as a multiple of `dim`."""

    @model_validator(mode="after")
    def _check(self) -> "BlockOptions":
        if self.dim % self.num_heads:
            raise UserError(f"num_heads: {self.num_heads} heads do not divide dim={self.dim}")
        return self


class DirectOptions(Config):
    """Options of `direct`, which has no blocks: features are the encoder's."""


class JointOptions(BlockOptions):
    """Options of `joint`."""

    has_norm: bool = False
    """Normalise the features before the heads, as MAE does."""


class StagedOptions(BlockOptions):
    """Options of `self_attention`, and of every decoder with stages."""

    entry: Literal["shared", "own"] = "shared"
    """Share one projection, mask token and granularity embedding among the stages, or give each its own (MultiMAE)."""
    stage_per: Literal["granularity", "target"] = "granularity"
    """Predict further targets of a granularity by heads on its stage, or by a stage of their own (MultiMAE)."""


class ParallelOptions(StagedOptions):
    """Options of `parallel`."""

    context: Context = "all"
    """Tokens that a stage attends to: all, hidden ones included, or the visible ones and the carried stages."""
    query_residual: bool = True
    """Add the output of the first block to its queries. Without it, queries only select what is read (MultiMAE)."""


class CascadedOptions(ParallelOptions):
    """Options of `cascaded` and `reversed`."""

    carry: Carry = "last"
    """Earlier stages that a stage reads: the last one, or all."""
