"""Masks of rectangular blocks (BEiT, iBOT), with an exact number of hidden patches."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from c2fmae.masking._checks import check_noise, validate_budget
from c2fmae.masking.selection import random_mask


def block_mask(
    noise: Float[Tensor, "batch block 4"],
    fill_noise: Float[Tensor, "batch patch"],
    num_masked: Integer[Tensor, " batch"],
    grid: tuple[int, int],
    *,
    min_area: int,
    max_aspect: float = 1 / 0.3,
) -> Bool[Tensor, "batch patch"]:
    """Hide exactly `num_masked` patches of each image: those of blocks, proposed one after the other.

    The four numbers of a block are for its area, from `min_area` to what is left to hide, its aspect, log-uniform up to
    `max_aspect`, its row and its column. As in the official code a block is rejected if it is as long as the grid, or
    if it hides too much. What no block hides is then hidden at random, next to blocks if possible.
    """
    rows, columns = grid
    shape = (len(noise), rows * columns)
    check_noise(fill_noise, shape)
    budget = validate_budget(num_masked, shape)[:, 0]
    row_idx, column_idx = torch.arange(rows, device=noise.device), torch.arange(columns, device=noise.device)
    is_masked = torch.zeros(len(noise), rows, columns, dtype=torch.bool, device=noise.device)
    # In double precision, a difference between devices in the last bit does not change a rounded side.
    for area, aspect, row, column in noise.double().permute(1, 2, 0):
        left = budget - is_masked.sum(dim=(1, 2))
        size = min_area + area * (left - min_area)
        ratio = ((2 * aspect - 1) * math.log(max_aspect)).exp()
        height, width = (size * ratio).sqrt().round(), (size / ratio).sqrt().round()
        top, first = (row * (rows - height + 1)).floor(), (column * (columns - width + 1)).floor()
        block = _find_between(row_idx, top, height).unsqueeze(2) & _find_between(column_idx, first, width).unsqueeze(1)
        num_new = (block & ~is_masked).sum(dim=(1, 2))
        is_accepted = (height < rows) & (width < columns) & (num_new <= left)
        is_masked |= block & is_accepted.view(-1, 1, 1)
    # Hidden patches come first, then their neighbours, then all others.
    neighbours = F.max_pool2d(is_masked.double().unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    return random_mask(fill_noise.double() + (neighbours + is_masked).flatten(1), budget)


def sample_budgets(
    noise: Float[Tensor, "batch 2"], num_patches: int, *, mask_ratios: tuple[float, float], chance: float
) -> Int[Tensor, " batch"]:
    """Return each image's number of hidden patches: with this chance that of a ratio between these, else 0 (iBOT)."""
    low, high = mask_ratios
    coin, ratio = noise.double().unbind(1)
    return torch.where(coin < chance, (low + ratio * (high - low)) * num_patches, 0.0).long()


def _find_between(
    idx: Int[Tensor, " place"], start: Float[Tensor, " batch"], length: Float[Tensor, " batch"]
) -> Bool[Tensor, "batch place"]:
    """Return whether each index is in [start, start + length)."""
    first = start.unsqueeze(1)
    return (idx >= first) & (idx < first + length.unsqueeze(1))
