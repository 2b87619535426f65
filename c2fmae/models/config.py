"""Encoder and decoder as a recipe writes them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.models.decoders import DECODERS
from c2fmae.models.decoders.wirings import Carry, Context

DropRate = Annotated[float, Field(ge=0, lt=1)]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderConfig(Config):
    """Which ViT sees the visible patches."""

    name: Annotated[str, Field(min_length=1)] = "vit_base_patch16_224"
    """A plain ViT of timm; its weights are drawn anew."""
    patch_size: PositiveInt | None = None
    """Pixels of a patch's side, where they are not those of the named ViT; so the next five, for others' weights."""
    dim: Annotated[int, Field(ge=4, multiple_of=4)] | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    """The width within its MLPs, as a multiple of its own."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """What its norms add to variances: 1e-6 in timm, MAE and MultiMAE, 1e-12 in Hugging Face's ViTs."""
    drop_path: DropRate = 0.0
    has_norm: bool = False
    """Whether the latents are normed before the decoder: not in MultiMAE, but in MAE."""
    keep_positions: bool = False
    """Use the positions that come with a timm ViT's weights; otherwise they are sines and cosines."""
    checkpoint: bool = False
    """Compute blocks a second time in the backward pass instead of keeping what they made: less memory, slower."""

    @model_validator(mode="after")
    def _check(self) -> "EncoderConfig":
        if self.dim and self.num_heads and self.dim % self.num_heads:
            raise UserError(f"num_heads: {self.num_heads} do not divide the width, {self.dim}")
        return self

    def vit_kwargs(self) -> dict[str, Any]:
        """Return what differs from the named ViT, in the words of `create_vit`."""
        kwargs = dict(  # noqa: C408 - arguments of a function
            patch_size=self.patch_size,
            embed_dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            norm_eps=self.norm_eps,
        )
        return {word: number for word, number in kwargs.items() if number is not None}


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
            raise UserError(f"num_heads: {self.num_heads} do not divide the width, {self.dim}")
        return self
