"""Names of decoders, and the parts that each is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from timm.layers.norm import LayerNorm
from torch import nn

from c2fmae.core.registry import Registry
from c2fmae.models.attention import CrossBlock, create_self_block
from c2fmae.models.decoders.state import DecoderEntry
from c2fmae.models.decoders.wirings import (
    Carry,
    CascadedDecoder,
    Context,
    JointDecoder,
    ParallelDecoder,
    SelfAttentionDecoder,
    Stage,
)


@dataclass(frozen=True, kw_only=True)
class DecoderPlan:
    """All that a decoder is made from."""

    encoder_dim: int
    """Of the encoder."""
    granularities: tuple[str, ...]
    """Of the model: their order is that of the tokens."""
    stages: Mapping[str, str]
    """The granularity that each stage predicts, in the order of the cascade."""
    dim: int = 256
    num_heads: int = 8
    depth: int = 2
    mlp_ratio: float = 4.0
    context: Context = "all"
    carry: Carry = "last"
    query_residual: bool = True
    entry: Literal["shared", "own"] = "shared"
    has_norm: bool = False

    def create_entry(self) -> DecoderEntry:
        """Make one way in."""
        return DecoderEntry(self.encoder_dim, self.dim, len(self.granularities))

    def create_entries(self) -> list[DecoderEntry]:
        """Make the ways in: one, or one a stage."""
        return [self.create_entry() for _ in (range(1) if self.entry == "shared" else self.stages)]

    def create_self_block(self) -> nn.Module:
        """Make a self-attention block."""
        return create_self_block(self.dim, self.num_heads, self.mlp_ratio)

    def create_cross_block(self) -> nn.Module:
        """Make a cross-attention block."""
        return CrossBlock(self.dim, self.num_heads, self.mlp_ratio, query_residual=self.query_residual)

    def create_stages(self, create_first: Callable[[], nn.Module]) -> dict[str, Stage]:
        """Make every stage: a first block, then `depth` self-attention blocks."""
        return {
            name: Stage(
                self.granularity_index(granularity),
                create_first(),
                *(self.create_self_block() for _ in range(self.depth)),
            )
            for name, granularity in self.stages.items()
        }

    def granularity_index(self, granularity: str) -> int:
        """Return a granularity's place in the tokens."""
        return self.granularities.index(granularity)


DECODERS: Registry[Callable[[DecoderPlan], nn.Module]] = Registry("decoder")


@DECODERS.register("cascaded", "Each stage reads the one before it, in any order: C2FMAE's, coarse to fine.")
def create_cascaded(plan: DecoderPlan) -> CascadedDecoder:
    """Make a cascade in the order of the stages."""
    stages = plan.create_stages(plan.create_cross_block)
    return CascadedDecoder(plan.create_entries(), stages, context=plan.context, carry=plan.carry)


@DECODERS.register("reversed", "The cascade from its last stage to its first: fine to coarse.")
def create_reversed(plan: DecoderPlan) -> CascadedDecoder:
    """Make a cascade in the opposite order."""
    return create_cascaded(replace(plan, stages=dict(reversed(list(plan.stages.items())))))


@DECODERS.register("parallel", "No stage reads another: MultiMAE's.")
def create_parallel(plan: DecoderPlan) -> ParallelDecoder:
    """Make stages that share a context and nothing else."""
    return ParallelDecoder(plan.create_entries(), plan.create_stages(plan.create_cross_block), context=plan.context)


@DECODERS.register("self_attention", "Each stage reads its own granularity alone: no cross-attention.")
def create_self_attention(plan: DecoderPlan) -> SelfAttentionDecoder:
    """Make stages of equal depth without a context."""
    return SelfAttentionDecoder(plan.create_entries(), plan.create_stages(plan.create_self_block))


@DECODERS.register("joint", "All tokens read each other in the same blocks: MAE's.")
def create_joint(plan: DecoderPlan) -> JointDecoder:
    """Make one stack of blocks for all tokens."""
    norm = LayerNorm(plan.dim) if plan.has_norm else nn.Identity()
    stages = {name: plan.granularity_index(granularity) for name, granularity in plan.stages.items()}
    return JointDecoder(plan.create_entry(), [plan.create_self_block() for _ in range(plan.depth)], norm, stages)
