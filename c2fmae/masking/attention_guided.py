"""Masks that follow the attention of a teacher (AttMask, MST)."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from c2fmae.masking.selection import random_mask


def high_attention_mask(
    attention: Float[Tensor, "batch patch"], num_masked: Integer[Tensor, " batch"]
) -> Bool[Tensor, "batch patch"]:
    """Hide the `num_masked` patches of highest attention; ties go to the lower index (AttMask-High).

    >>> high_attention_mask(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), torch.tensor([2]))
    tensor([[False,  True, False,  True]])
    """
    return random_mask(attention, num_masked)


def show_hints(
    is_masked: Bool[Tensor, "batch patch"],
    attention: Float[Tensor, "batch patch"],
    noise: Float[Tensor, "batch patch"],
    *,
    num_candidates: Integer[Tensor, " batch"],
    num_shown: Integer[Tensor, " batch"],
) -> Bool[Tensor, "batch patch"]:
    """Show `num_shown` of the `num_candidates` patches of highest attention, chosen uniformly (AttMask-Hint).

    A mask that hides all candidates then has `num_shown` hidden patches less.
    """
    is_candidate = random_mask(attention, num_candidates)
    shown = random_mask(torch.where(is_candidate, noise, -1.0), torch.minimum(num_shown, num_candidates))
    return is_masked & ~shown


def low_attention_mask(
    attention: Float[Tensor, "batch patch"],
    noise: Float[Tensor, "batch patch"],
    *,
    num_candidates: Integer[Tensor, " batch"],
    chance: float,
) -> Bool[Tensor, "batch patch"]:
    """Hide each of the `num_candidates` patches of lowest attention with this chance (MST)."""
    return random_mask(-attention, num_candidates) & (noise < chance)
