"""The registry of decoders, and the functions that build them for a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from timm.layers.norm import LayerNorm
from torch import nn

from c2fmae.core.decoder_options import (
    BlockOptions,
    CascadedOptions,
    DirectOptions,
    JointOptions,
    ParallelOptions,
    StagedOptions,
)
from c2fmae.core.registry import Registry
from c2fmae.models.attention import CrossBlock, create_self_block
from c2fmae.models.decoders.state import DecoderEntry
from c2fmae.models.decoders.wirings import (
    CascadedDecoder,
    DirectDecoder,
    JointDecoder,
    ParallelDecoder,
    SelfAttentionDecoder,
    Stage,
)


@dataclass(frozen=True, kw_only=True)
class DecoderLayout:
    """Encoder width, granularities and stages that a decoder is built for, independent of its options."""

    encoder_dim: int
    granularities: tuple[str, ...]
    """Granularities of the model, in the order of the tokens."""
    stages: Mapping[str, str]
    """Granularity that each stage predicts, in the order of the cascade."""

    def create_entry(self, dim: int) -> DecoderEntry:
        """Return a projection of the encoder's latents, with mask token and granularity embeddings."""
        return DecoderEntry(self.encoder_dim, dim, len(self.granularities))

    def granularity_index(self, granularity: str) -> int:
        """Return a granularity's position in the tokens."""
        return self.granularities.index(granularity)


DECODERS: Registry[Callable[..., nn.Module]] = Registry("decoder")


@DECODERS.register(
    "cascaded",
    "Each stage attends to the stage before it, in any order; coarse to fine by default (C2FMAE).",
    options=CascadedOptions,
)
def create_cascaded(layout: DecoderLayout, options: CascadedOptions) -> CascadedDecoder:
    """Create a cascade in the order of the stages."""
    stages = create_stages(layout, options, lambda: create_cross_block(options))
    return CascadedDecoder(create_entries(layout, options), stages, context=options.context, carry=options.carry)


@DECODERS.register("reversed", "The cascade from its last stage to its first: fine to coarse.", options=CascadedOptions)
def create_reversed(layout: DecoderLayout, options: CascadedOptions) -> CascadedDecoder:
    """Create a cascade in the opposite order."""
    return create_cascaded(replace(layout, stages=dict(reversed(list(layout.stages.items())))), options)


@DECODERS.register("parallel", "No stage attends to another (MultiMAE).", options=ParallelOptions)
def create_parallel(layout: DecoderLayout, options: ParallelOptions) -> ParallelDecoder:
    """Create stages that share only a context."""
    stages = create_stages(layout, options, lambda: create_cross_block(options))
    return ParallelDecoder(create_entries(layout, options), stages, context=options.context)


@DECODERS.register(
    "self_attention", "Each stage attends only to its own granularity: no cross-attention.", options=StagedOptions
)
def create_self_attention(layout: DecoderLayout, options: StagedOptions) -> SelfAttentionDecoder:
    """Create stages of equal depth without a context."""
    stages = create_stages(layout, options, lambda: create_block(options))
    return SelfAttentionDecoder(create_entries(layout, options), stages)


@DECODERS.register("joint", "All tokens attend to each other in the same blocks (MAE).", options=JointOptions)
def create_joint(layout: DecoderLayout, options: JointOptions) -> JointDecoder:
    """Create one stack of blocks for all tokens."""
    norm = LayerNorm(options.dim) if options.has_norm else nn.Identity()
    stages = {name: layout.granularity_index(granularity) for name, granularity in layout.stages.items()}
    blocks = [create_block(options) for _ in range(options.depth)]
    return JointDecoder(layout.create_entry(options.dim), blocks, norm, stages)


@DECODERS.register(
    "direct", "None: the encoder reads mask tokens, and heads read the encoder (SimMIM, BEiT).", options=DirectOptions
)
def create_direct(layout: DecoderLayout, options: DirectOptions) -> DirectDecoder:
    """Create a decoder without weights."""
    del options
    return DirectDecoder({name: layout.granularity_index(granularity) for name, granularity in layout.stages.items()})


def create_entries(layout: DecoderLayout, options: StagedOptions) -> list[DecoderEntry]:
    """Return one entry for all stages, or one for each."""
    return [layout.create_entry(options.dim) for _ in (range(1) if options.entry == "shared" else layout.stages)]


def create_stages(
    layout: DecoderLayout, options: StagedOptions, create_first: Callable[[], nn.Module]
) -> dict[str, Stage]:
    """Return all stages: each a first block, then `depth` self-attention blocks."""
    return {
        name: Stage(
            layout.granularity_index(granularity),
            create_first(),
            *(create_block(options) for _ in range(options.depth)),
        )
        for name, granularity in layout.stages.items()
    }


def create_block(options: BlockOptions) -> nn.Module:
    """Return a self-attention block."""
    return create_self_block(options.dim, options.num_heads, options.mlp_ratio)


def create_cross_block(options: ParallelOptions) -> nn.Module:
    """Return a cross-attention block."""
    return CrossBlock(options.dim, options.num_heads, options.mlp_ratio, query_residual=options.query_residual)
