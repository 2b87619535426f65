"""Decoder as a recipe writes it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.models.decoders import DECODERS
from c2fmae.models.decoders.wirings import Carry, Context


class DecoderConfig(Config):
    """How the predictions are wired. What a wiring has no use for is left aside: exchanging it is one change."""

    name: str = "cascaded"
    order: tuple[str, ...] | None = None
    """The granularities in the order of their stages; coarse to fine, as the recipe lists them, unless given."""
    dim: Annotated[int, Field(ge=4, multiple_of=4)] = 256
    num_heads: PositiveInt = 8
    depth: Annotated[int, Field(ge=0)] = 2
    """Self-attention blocks of each stage behind its first block; in `joint`, all blocks."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    context: Context = "all"
    """What stages read: all tokens, hidden ones too, or only those that the encoder saw and the carried stage."""
    carry: Carry = "last"
    """What a cascade's stage reads of those before it."""
    query_residual: bool = True
    """Whether the first block adds to its queries (a query without it only asks: MultiMAE)."""
    entry: Literal["shared", "own"] = "shared"
    """One way in for all stages, or for each its own projection, mask token and granularity embeddings (MultiMAE)."""
    stage_per: Literal["granularity", "target"] = "granularity"
    """Whether a second target of a granularity gets a head on the same stage, or a stage of its own (MultiMAE)."""
    has_norm: bool = False
    """Whether a `joint` decoder norms its features before the heads (MAE)."""

    @model_validator(mode="after")
    def _check(self) -> "DecoderConfig":
        DECODERS.get(self.name)
        if self.dim % self.num_heads:
            raise UserError(f"num_heads: {self.num_heads} heads do not divide dim={self.dim}")
        return self
