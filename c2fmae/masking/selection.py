"""Selection of patches by noise, for all rows of a batch in parallel."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from c2fmae.masking._checks import check_batch_by_patch, check_noise, validate_budget


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
    return hide_first(descending_key(noise).argsort(dim=1, stable=True), budget)


def top_k_mask(
    scores: Float[Tensor, "batch patch"], num_masked: Integer[Tensor, " batch"], noise: Float[Tensor, "batch patch"]
) -> Bool[Tensor, "batch patch"]:
    """Hide the `num_masked` patches of highest score (Eq. 11); ties go to the higher noise, then to the lower index."""
    rows = check_batch_by_patch("scores", scores)
    check_noise(noise, rows)
    budget = validate_budget(num_masked, rows)
    return hide_first(argsort_by_group(descending_key(scores), descending_key(noise)), budget)


class SortedGroups(NamedTuple):
    """Patches of each row, sorted by group and by descending noise within a group: every group is a run."""

    order: Int[Tensor, "batch patch"]
    """The patch at each position."""
    group: Int[Tensor, "batch patch"]
    """The group of that patch."""
    start: Int[Tensor, "batch patch"]
    """The position at which the run of that group starts."""
    size: Int[Tensor, "batch patch"]
    """At the first position of a run, its length; 0 elsewhere."""

    def hide(self, quota: Int[Tensor, "batch patch"]) -> Bool[Tensor, "batch patch"]:
        """Hide the first patches of each run, as many as `quota` at its first position."""
        end = quota.gather(1, self.start).add_(self.start)
        return scatter_to_patches(torch.arange(end.shape[1], device=end.device) < end, self.order)


def sort_by_group(group: Integer[Tensor, "batch patch"], noise: Float[Tensor, "batch patch"]) -> SortedGroups:
    """Sort the patches of each row by group and by descending noise within a group."""
    key, order = _group_sort_key(group, descending_key(noise)).sort(dim=1, stable=True)
    group = key >> 32
    is_first = torch.nn.functional.pad(group[:, 1:] != group[:, :-1], (1, 0), value=True)
    count = torch.arange(1, group.shape[1] + 1, dtype=torch.int32, device=group.device)
    start = (is_first * count).cummax(dim=1).indices  # the start of the latest run so far
    size = torch.zeros_like(start).scatter_add_(1, start, start.new_ones(()).expand_as(start))
    return SortedGroups(order, group, start, size)


def argsort_by_group(
    group: Integer[Tensor, "batch patch"], sort_key: Integer[Tensor, "batch patch"]
) -> Int[Tensor, "batch patch"]:
    """Return the order of patches by group, then by sort key, then by index.

    Groups and keys are 32-bit integers, so one sort of 64-bit integers is enough.
    """
    return _group_sort_key(group, sort_key).argsort(dim=1, stable=True)


def _group_sort_key(group: Tensor, sort_key: Tensor) -> Tensor:
    # Adding 2^31 makes the low half unsigned, so that the high half is the group again.
    return torch.add(sort_key, group.long(), alpha=1 << 32).add_(1 << 31)


def hide_first(order: Int[Tensor, "batch patch"], budget: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch patch"]:
    """Hide the first `budget` patches of an order."""
    return scatter_to_patches(torch.arange(order.shape[1], device=order.device) < budget, order)


def scatter_to_patches(is_masked: Tensor, order: Tensor) -> Tensor:
    """Return values by patch, given values by position in an order that contains every patch."""
    return torch.empty_like(is_masked).scatter_(1, order, is_masked)


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
