"""Hypothesis strategies for ids, noise and budgets: with ties, missing ids, ignore, and budgets of none and all."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor


class MaskInputs(NamedTuple):
    """Ids of the patches of a batch, with noise and budgets."""

    ids: Tensor
    noise: Tensor
    num_masked: Tensor


@st.composite
def mask_inputs(
    draw: st.DrawFn, *, ids: tuple[int, ...] = (0, 1, 2, 7, 19, 255), distinct_noise: bool = False
) -> MaskInputs:
    batch, patches = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 5, 12, 35, 196]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    present = draw(st.lists(st.sampled_from(ids), min_size=1, max_size=len(ids), unique=True))
    chosen = torch.tensor(present)[torch.randint(len(present), (batch, patches), generator=generator)]
    noise = torch.stack([torch.randperm(patches, generator=generator) for _ in range(batch)]) / patches
    if not distinct_noise and draw(st.booleans()):
        noise = (noise * 3).round() / 3 - draw(st.sampled_from([0.0, 0.5]))
    budgets = st.one_of(st.just(0), st.just(patches), st.integers(0, patches))
    return MaskInputs(chosen, noise, torch.tensor([draw(budgets) for _ in range(batch)]))


def masked_sets(is_masked: Tensor) -> list[set[int]]:
    """The hidden patches of each row."""
    return [set(row.nonzero().flatten().tolist()) for row in is_masked]
