"""Selection of patches by noise, for all rows of a batch in parallel."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64, Integer, Shaped
from torch import Tensor

from c2fmae.masking._checks import (
    can_read_values,
    check_batch_by_patch,
    check_mask,
    check_noise,
    check_not_nan,
    validate_budget,
)
from c2fmae.masking.sorting import sort_rows, sort_rows_with_order


def random_mask(
    noise: Float[Tensor, "batch patch"], num_masked: Integer[Tensor, " batch"]
) -> Bool[Tensor, "batch patch"]:
    """Hide exactly `num_masked` patches of each row: those of highest noise, the lower index first among equals.

    >>> random_mask(torch.tensor([[0.3, 0.9, 0.1, 0.5]]), torch.tensor([2]))
    tensor([[False,  True, False,  True]])
    """
    rows = check_batch_by_patch("noise", noise)
    check_noise(noise, rows)
    budget = validate_budget(num_masked, rows)
    return hide_lowest(descending_key(noise), budget)


def top_k_mask(
    scores: Float[Tensor, "batch patch"], num_masked: Integer[Tensor, " batch"], noise: Float[Tensor, "batch patch"]
) -> Bool[Tensor, "batch patch"]:
    """Hide the `num_masked` patches of highest score (Eq. 11); ties go to the higher noise, then to the lower index."""
    rows = check_batch_by_patch("scores", scores)
    check_not_nan("scores", scores)
    check_noise(noise, rows)
    budget = validate_budget(num_masked, rows)
    score = descending_key(scores)
    last = take_last(sort_rows(score), budget)
    # Group 0 is hidden completely, group 1 in part, group 2 not at all.
    group = (score >= last).view(torch.uint8) + (score > last).view(torch.uint8)
    return hide_lowest(key_by_group(group, descending_key(noise)), budget)


def select_decoded(
    is_masked: Bool[Tensor, "batch patch"], noise: Float[Tensor, "batch patch"], num_decoded: int
) -> Int64[Tensor, "batch decoded"]:
    """Return the indices of `num_decoded` patches of each row, ascending: hidden ones of highest noise.

    Only where a row has fewer hidden patches, visible ones of highest noise follow. The lower index is first among
    equals.

    >>> noise = torch.tensor([[0.3, 0.9, 0.1, 0.5]])
    >>> [select_decoded(torch.tensor([[True, False, True, True]]), noise, count).tolist() for count in (2, 4)]
    [[[0, 3]], [[0, 1, 2, 3]]]
    """
    rows = check_batch_by_patch("is_masked", is_masked)
    check_mask("is_masked", is_masked, rows)
    check_noise(noise, rows)
    if not 0 <= num_decoded <= rows[1]:
        raise ValueError(f"num_decoded: expected 0 to {rows[1]}, the number of patches, got {num_decoded}")
    _, order = sort_rows_with_order(key_by_group(~is_masked, descending_key(noise)))
    return sort_rows(order[:, :num_decoded])


class SortedGroups(NamedTuple):
    """Patches of each row, sorted by group and by descending noise within a group: every group is a run."""

    order: Int[Tensor, "batch patch"]
    """The patch at each position."""
    run: Int[Tensor, "batch patch"]
    """The run at each position: 0, 1, …"""
    start: Int[Tensor, "batch run"]
    """The position at which each run starts."""
    size: Int[Tensor, "batch run"]
    """The length of each run; 0 for the last ones of a row that has fewer runs."""
    group: Int[Tensor, "batch run"]
    """The group of each run; any group of the row if the size is 0."""

    def hide(self, quota: Int[Tensor, "batch run"]) -> Bool[Tensor, "batch patch"]:
        """Hide the first patches of each run, as many as its quota."""
        end = (self.start + quota).gather(1, self.run)
        return self.to_patches(torch.arange(end.shape[1], device=end.device) < end)

    def to_patches(self, values: Shaped[Tensor, "batch patch"]) -> Shaped[Tensor, "batch patch"]:
        """Return values by patch, given values by position."""
        return torch.empty_like(values).scatter_(1, self.order, values)


def sort_by_group(group: Integer[Tensor, "batch patch"], noise: Float[Tensor, "batch patch"]) -> SortedGroups:
    """Sort the patches of each row by group and by descending noise within a group."""
    # Adding 2^31 makes the low half unsigned, so that the high half is the group again.
    key, order = sort_rows_with_order(key_by_group(group, descending_key(noise)).add_(1 << 31))
    group = key >> 32
    run = torch.nn.functional.pad(group[:, 1:] != group[:, :-1], (1, 0)).cumsum(dim=1)
    # There are far fewer runs than patches; where their number cannot be read, columns of size 0 make up for it.
    num_runs = int(run[:, -1].max()) + 1 if can_read_values(run) and run.numel() else run.shape[1]
    size = run.new_zeros(len(run), num_runs).scatter_add_(1, run, torch.ones_like(run))
    start = size.cumsum(dim=1) - size
    return SortedGroups(order, run, start, size, group.gather(1, start.clamp(max=group.shape[1] - 1)))


def hide_lowest(key: Int[Tensor, "batch patch"], budget: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch patch"]:
    """Hide the `budget` patches of lowest key, the lower index first among equals."""
    distinct = append_index(key)
    return distinct <= take_last(sort_rows(distinct), budget)


def key_by_group(
    group: Integer[Tensor, "batch patch"] | Bool[Tensor, "batch patch"], sort_key: Integer[Tensor, "batch patch"]
) -> Int64[Tensor, "batch patch"]:
    """Return integers in the order of the group, then of the sort key, two integers of 32 bits."""
    return torch.add(sort_key, group.long(), alpha=1 << 32)


def append_index(key: Integer[Tensor, "batch patch"]) -> Int64[Tensor, "batch patch"]:
    """Return distinct integers in the order of the key, then of the index; the key may have about 40 bits."""
    patches = key.shape[1]
    return torch.add(torch.arange(patches, device=key.device), key.long(), alpha=patches)


def take_last(ordered: Integer[Tensor, "batch patch"], count: Int[Tensor, "batch 1"]) -> Integer[Tensor, "batch 1"]:
    """Return the last of the first `count` keys of each row; less than any key if `count` is 0."""
    last = ordered.gather(1, (count - 1).clamp(min=0))
    return last.where(count > 0, torch.iinfo(last.dtype).min)


def descending_key(values: Float[Tensor, "batch patch"]) -> Int[Tensor, "batch patch"]:
    """Return 32-bit integers in the opposite order of the values, equal where these are equal.

    The bits of a float, read as an integer, increase with its magnitude, and decrease if it is negative. Float64 does
    not fit, and is replaced by its rank in the row.
    """
    if values.dtype == torch.float64:
        ordered, order = values.sort(dim=1)
        rank = torch.nn.functional.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=1), (1, 0))
        return ~torch.zeros_like(rank).scatter(1, order, rank).int()
    bits = values.float().view(torch.int32)
    sign = bits >> 31  # -1 if negative; subtracting it makes -0.0 equal to 0.0
    return (sign & 0x7FFFFFFF).bitwise_xor_(bits).sub_(sign).bitwise_not_()
