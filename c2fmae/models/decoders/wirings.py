"""The classes of all decoders: the same blocks with different connections.

A decoder takes the encoder's latents and returns features for each *stage*, which has a name, a granularity that it
predicts, and blocks. Prediction heads are applied to the features outside the decoder.

If the masks list patches to decode (`Masks.decoded_idx`), features are those of the listed patches. What a patch can
read stays the same: the first block of a stage, or `joint`, reads all visible tokens. The further blocks of a stage
process the listed patches alone.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.decoder_options import Carry, Context
from c2fmae.core.masks import Masks
from c2fmae.models.attention import DeviceAwareAttention
from c2fmae.models.decoders.state import DecoderEntry, DecoderState

EncoderLatents = Float[Tensor, "batch latent width"]
StageFeatures = dict[str, Tensor]


class Stage(nn.Module):
    """The blocks of one prediction: a first block, cross-attention if there is a context, then self-attention."""

    def __init__(self, granularity: int, first: nn.Module, *rest: nn.Module) -> None:
        super().__init__()
        self.granularity = granularity
        self.first = first
        self.rest = nn.Sequential(*rest)

    def forward(self, state: DecoderState, *context: Tensor) -> Float[Tensor, "batch decoded dim"]:
        """Return the features of those of the granularity's patches that are decoded."""
        if context:
            features = self.first(state.decoded_tokens_of(self.granularity), *context)
        else:  # self-attention can read visible tokens only if they are among its queries
            features = state.select_decoded(self.first(state.tokens_of(self.granularity)), self.granularity)
        return self.rest(features)  # type: ignore[no-any-return]


class _StagedDecoder(DeviceAwareAttention):
    """A decoder of stages, which share one entry or have one each."""

    supports_share: ClassVar = True

    def __init__(self, entries: Sequence[DecoderEntry], stages: Mapping[str, Stage]) -> None:
        super().__init__()
        self.entries = nn.ModuleList(entries)
        self.stages = nn.ModuleDict(stages)
        self.granularity_indices = {name: stage.granularity for name, stage in stages.items()}
        self._choose_attention()

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of all stages, for sharding and compilation."""
        return [block for stage in cast(list[Stage], self.stages.values()) for block in (stage.first, *stage.rest)]

    def create_states(self, latent: EncoderLatents, masks: Masks, grid: tuple[int, int]) -> list[DecoderState]:
        """Return the input state of each stage."""
        states = [entry(latent, masks, grid) for entry in self.entries]
        return states * len(self.stages) if len(states) == 1 else states


class CascadedDecoder(_StagedDecoder):
    """A decoder whose stages attend to the previous stage or, with `carry="all"`, to all previous ones."""

    def __init__(
        self,
        entries: Sequence[DecoderEntry],
        stages: Mapping[str, Stage],
        *,
        context: Context = "all",
        carry: Carry = "last",
    ) -> None:
        super().__init__(entries, stages)
        self.context: Context = context
        self.num_carried = 1 if carry == "last" else len(stages)
        self.carry = nn.Identity()  # carried features pass through it, so that a hook can observe or change them

    def forward(self, latent: EncoderLatents, masks: Masks, grid: tuple[int, int]) -> StageFeatures:
        """Return each stage's features."""
        features: StageFeatures = {}
        earlier: list[tuple[int, Tensor]] = []
        for (name, stage), state in zip(self.stages.items(), self.create_states(latent, masks, grid), strict=True):
            carried = [(granularity, self.carry(result)) for granularity, result in earlier[-self.num_carried :]]
            features[name] = stage(state, build_context(state, self.context, carried))
            earlier.append((self.granularity_indices[name], features[name]))
        return features


class ParallelDecoder(_StagedDecoder):
    """A decoder whose stages do not attend to each other (MultiMAE)."""

    def __init__(
        self, entries: Sequence[DecoderEntry], stages: Mapping[str, Stage], *, context: Context = "visible"
    ) -> None:
        super().__init__(entries, stages)
        self.context: Context = context

    def forward(self, latent: EncoderLatents, masks: Masks, grid: tuple[int, int]) -> StageFeatures:
        """Return each stage's features."""
        states = zip(self.stages.items(), self.create_states(latent, masks, grid), strict=True)
        return {name: stage(state, build_context(state, self.context, [])) for (name, stage), state in states}


class SelfAttentionDecoder(_StagedDecoder):
    """A decoder whose stages attend only to their own granularity: the paper's ablation without cross-attention."""

    def forward(self, latent: EncoderLatents, masks: Masks, grid: tuple[int, int]) -> StageFeatures:
        """Return each stage's features."""
        states = zip(self.stages.items(), self.create_states(latent, masks, grid), strict=True)
        return {name: stage(state) for (name, stage), state in states}


class JointDecoder(DeviceAwareAttention):
    """A decoder in which all tokens attend to each other in the same blocks (MAE).

    If only some patches are decoded, these tokens are the visible ones and those of the decoded patches.
    """

    supports_share: ClassVar = True

    def __init__(
        self, entry: DecoderEntry, blocks: Sequence[nn.Module], norm: nn.Module, stages: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.entry, self.blocks, self.norm = entry, nn.Sequential(*blocks), norm
        self.granularity_indices = dict(stages)
        self._choose_attention()

    def forward(self, latent: EncoderLatents, masks: Masks, grid: tuple[int, int]) -> StageFeatures:
        """Return each stage's features."""
        state: DecoderState = self.entry(latent, masks, grid)
        context = state.prefix
        decoded = state.tokens
        if masks.decoded_idx is not None:
            context = torch.cat([state.prefix, state.visible_tokens()], dim=1)
            decoded = torch.cat([state.decoded_tokens_of(index) for index in range(len(masks.granularities))], dim=1)
        x = self.norm(self.blocks(torch.cat([context, decoded], dim=1)))
        features = x[:, context.shape[1] :].unflatten(1, (len(masks.granularities), -1))
        return {name: features[:, granularity] for name, granularity in self.granularity_indices.items()}


class DirectDecoder(nn.Module):
    """No decoder: features are the latents of an encoder that reads mask tokens in the places of hidden patches."""

    supports_share: ClassVar = True
    needs_mask_tokens: ClassVar = True

    def __init__(self, stages: Mapping[str, int]) -> None:
        super().__init__()
        self.granularity_indices = dict(stages)

    def forward(self, latent: EncoderLatents, masks: Masks, grid: tuple[int, int]) -> StageFeatures:
        """Return each stage's features."""
        del grid
        granularities, num_patches = masks.is_masked.shape[1:]
        num_tokens = granularities * num_patches
        if len(latent) != len(masks.is_masked) or latent.shape[1] < num_tokens:
            raise ValueError(
                f"latent: expected [{len(masks.is_masked)}, {num_tokens} or more, width] (batch, class tokens and all "
                f"patches, width of the encoder), got {list(latent.shape)}"
            )
        prefix, tokens = latent.split([latent.shape[1] - num_tokens, num_tokens], dim=1)
        state = DecoderState(prefix, tokens, masks.visible_idx, num_patches, masks.decoded_idx)
        return {name: state.decoded_tokens_of(index) for name, index in self.granularity_indices.items()}


def build_context(
    state: DecoderState, context: Context, carried: Sequence[tuple[int, Tensor]]
) -> Float[Tensor, "batch key dim"]:
    """Return the context of a stage: all tokens with carried features added, T + place(F), or only visible and carried.

    With `context="visible"` it is prefix tokens, visible tokens, and the tokens plus features of each carried stage.
    """
    if context == "visible":
        stages = [state.decoded_tokens_of(granularity) + features for granularity, features in carried]
        return torch.cat([state.prefix, state.visible_tokens(), *stages], dim=1)
    for granularity, features in carried:
        state = state._replace(tokens=state.add_features(features, granularity))
    return state.tokens
