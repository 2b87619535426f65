"""The decoders, side by side: the same blocks in different wirings.

A decoder takes the encoder's latents and returns features for every *stage*: a name, the granularity that it predicts,
its blocks. The head that turns features into predictions comes after it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.masks import Masks
from c2fmae.models.attention import AttentionByDevice
from c2fmae.models.decoders.state import Entry, State

Context = Literal["all", "visible"]
Carry = Literal["last", "all"]
Latent = Float[Tensor, "batch latent width"]
Features = dict[str, Tensor]


class Stage(nn.Module):
    """One prediction's blocks: a first one, with cross-attention if it has a context, then self-attention blocks."""

    def __init__(self, granularity: int, first: nn.Module, *rest: nn.Module) -> None:
        super().__init__()
        self.granularity = granularity
        self.first = first
        self.rest = nn.Sequential(*rest)

    def forward(self, state: State, *context: Tensor) -> Float[Tensor, "batch patch dim"]:
        """Turn the granularity's tokens into features."""
        return self.rest(self.first(state.of(self.granularity), *context))  # type: ignore[no-any-return]


class _Staged(AttentionByDevice):
    """Stages one after another, from one state or each from its own."""

    def __init__(self, entries: Sequence[Entry], stages: Mapping[str, Stage]) -> None:
        super().__init__()
        self.entries = nn.ModuleList(entries)
        self.stages = nn.ModuleDict(stages)
        self.places = {name: stage.granularity for name, stage in stages.items()}
        self._choose_attention()

    def states(self, latent: Latent, masks: Masks, grid: tuple[int, int]) -> list[State]:
        """Return the state that each stage works on."""
        states = [entry(latent, masks, grid) for entry in self.entries]
        return states * len(self.stages) if len(states) == 1 else states


class Cascaded(_Staged):
    """Each stage reads the stage before it: `carry` the last, or all of them. The order is that of `stages`."""

    def __init__(
        self, entries: Sequence[Entry], stages: Mapping[str, Stage], *, context: Context = "all", carry: Carry = "last"
    ) -> None:
        super().__init__(entries, stages)
        self.context: Context = context
        self.num_carried = 1 if carry == "last" else len(stages)
        self.carry = nn.Identity()  # what goes from stage to stage passes here, to be watched or stopped by a hook

    def forward(self, latent: Latent, masks: Masks, grid: tuple[int, int]) -> Features:
        """Return each stage's features."""
        features: Features = {}
        earlier: list[tuple[int, Tensor]] = []
        for (name, stage), state in zip(self.stages.items(), self.states(latent, masks, grid), strict=True):
            carried = [(place, self.carry(result)) for place, result in earlier[-self.num_carried :]]
            features[name] = stage(state, context_of(state, self.context, carried))
            earlier.append((self.places[name], features[name]))
        return features


class Parallel(_Staged):
    """No stage reads another: MultiMAE's."""

    def __init__(self, entries: Sequence[Entry], stages: Mapping[str, Stage], *, context: Context = "visible") -> None:
        super().__init__(entries, stages)
        self.context: Context = context

    def forward(self, latent: Latent, masks: Masks, grid: tuple[int, int]) -> Features:
        """Return each stage's features."""
        states = zip(self.stages.items(), self.states(latent, masks, grid), strict=True)
        return {name: stage(state, context_of(state, self.context, [])) for (name, stage), state in states}


class SelfAttention(_Staged):
    """No stage reads anything but its own granularity: the paper's row without cross-attention."""

    def forward(self, latent: Latent, masks: Masks, grid: tuple[int, int]) -> Features:
        """Return each stage's features."""
        states = zip(self.stages.items(), self.states(latent, masks, grid), strict=True)
        return {name: stage(state) for (name, stage), state in states}


class Joint(AttentionByDevice):
    """All tokens read each other in the same blocks: MAE's."""

    def __init__(self, entry: Entry, blocks: Sequence[nn.Module], norm: nn.Module, stages: Mapping[str, int]) -> None:
        super().__init__()
        self.entry, self.blocks, self.norm = entry, nn.Sequential(*blocks), norm
        self.granularities = dict(stages)
        self._choose_attention()

    def forward(self, latent: Latent, masks: Masks, grid: tuple[int, int]) -> Features:
        """Return each stage's features."""
        state: State = self.entry(latent, masks, grid)
        x = self.norm(self.blocks(torch.cat([state.prefix, state.tokens], dim=1)))
        done = state._replace(tokens=x[:, state.prefix.shape[1] :])
        return {name: done.of(granularity) for name, granularity in self.granularities.items()}


def context_of(state: State, context: Context, carried: Sequence[tuple[int, Tensor]]) -> Float[Tensor, "batch key dim"]:
    """Return the keys and values of a stage: T + place(F), or only what the encoder saw and what is carried."""
    if context == "visible":
        stages = [state.of(granularity) + features for granularity, features in carried]
        return torch.cat([state.prefix, state.visible(), *stages], dim=1)
    for granularity, features in carried:
        state = state._replace(tokens=state.land(features, granularity))
    return state.tokens
