"""Rounding of budgets by largest remainder (`apportion`), and sampling of the shares of granularities."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Integer, Real
from torch import Tensor

from c2fmae.masking._checks import can_read_values, check_concentration, check_ids, check_shape
from c2fmae.masking.sorting import sort_rows_with_order

_TIE_TOLERANCE = 1e-9
"""Real remainders that differ by less count as equal."""
_TINY = torch.finfo(torch.float64).tiny


def apportion(
    weights: Real[Tensor, "batch bin"],
    total: Integer[Tensor, " batch"],
    capacity: Integer[Tensor, "batch bin"],
) -> Int[Tensor, "batch bin"]:
    """Divide integer totals over bins in proportion to weights, by largest remainder, up to the capacity of each bin.

    The shares of a row add up to its total, or to its capacity if that is less. Each share is within one of its quota
    min(capacity, λ · weight), where λ is the level at which the quotas add up to the total. Ties go to the lower bin.
    Bins of weight 0 get, in proportion to their capacity, only the excess that the others cannot hold. Integer weights
    are exact as long as weight × total and weight × capacity stay below 2^52.

    >>> apportion(torch.tensor([[3, 2, 1]]), torch.tensor([10]), torch.tensor([[4, 9, 9]]))
    tensor([[4, 4, 2]])
    """
    total, level = _find_level(weights, total, capacity)
    capacity = capacity.long()
    product, divisor = level.weights * level.rest, level.total_weight
    if product.is_floating_point():
        quota = product / divisor
        share = quota.floor().long().minimum(capacity)
        remainder = _rank_remainders(torch.where(share < capacity, quota - share, -1.0))
    else:
        share = product // divisor
        remainder = product.sub_(share * divisor)
    return _add_remainder_(torch.where(level.is_full, capacity, share), total, remainder)


def apportion_evenly(
    size: Int[Tensor, "batch bin"], total: Int[Tensor, "batch 1"], patches: int
) -> Int[Tensor, "batch bin"]:
    """Divide totals over bins in proportion to their size: a faster `apportion`, since no bin can overflow.

    `patches` is the sum of the sizes of a row.
    """
    product = size * total
    share = product // patches
    return _add_remainder_(share, total, product.sub_(share * patches))


def compute_quotas(
    weights: Real[Tensor, "batch bin"],
    total: Integer[Tensor, " batch"],
    capacity: Integer[Tensor, "batch bin"],
) -> Float64[Tensor, "batch bin"]:
    """Return the real quotas that `apportion` rounds.

    >>> compute_quotas(torch.tensor([[3, 2, 1]]), torch.tensor([10]), torch.tensor([[4, 9, 9]]))
    tensor([[4., 4., 2.]], dtype=torch.float64)
    """
    _, level = _find_level(weights, total, capacity)
    return torch.where(level.is_full, capacity.double(), level.weights.double() * level.rest / level.total_weight)


def sample_shares(
    batch: int, concentration: Float[Tensor, " granularity"], *, generator: torch.Generator
) -> Float64[Tensor, "batch granularity"]:
    """Draw the shares of each image from a Dirichlet distribution; equal and high concentrations give even shares."""
    check_concentration(concentration)
    rates = concentration.to(generator.device, torch.float64, non_blocking=True).expand(batch, -1)
    # Tiny concentrations can underflow to 0 in all granularities of an image.
    gamma = torch._standard_gamma(rates, generator=generator).clamp(min=_TINY)
    return gamma / gamma.sum(dim=1, keepdim=True)


def _scale_weights(weights: Tensor) -> Tensor:
    """Divide weights by their maximum, so that sums do not overflow and products do not underflow."""
    return weights / weights.amax(dim=1, keepdim=True).clamp(min=_TINY)


class _Level(NamedTuple):
    """The bins that a total fills, and the rest for the other bins."""

    is_full: Bool[Tensor, "batch bin"]
    """Bins at their capacity."""
    weights: Real[Tensor, "batch bin"]
    """Weights of the bins that divide the rest; 0 elsewhere."""
    rest: Int[Tensor, "batch 1"]
    """The total less the capacity of the full bins."""
    total_weight: Real[Tensor, "batch 1"]
    """The sum of `weights`, or 1 if that is 0."""


def _find_level(weights: Tensor, total: Tensor, capacity: Tensor) -> tuple[Tensor, _Level]:
    """Return the totals, limited to the capacity, as a column, and the level to which they fill the bins."""
    _check_apportion_inputs(weights, total, capacity)
    capacity = capacity.long()
    weights = _scale_weights(weights.double()) if weights.is_floating_point() else weights.long()
    total = total.long().clamp(min=0).unsqueeze(1).minimum(capacity.sum(dim=1, keepdim=True))

    is_weighted = weights > 0
    weighted_capacity = capacity.where(is_weighted, 0).sum(dim=1, keepdim=True)
    has_excess = total > weighted_capacity  # the weighted bins are full, and the others divide the excess
    weights = torch.where(has_excess, capacity.where(~is_weighted, 0).to(weights.dtype), weights)
    is_full = (has_excess & is_weighted) | _find_full_bins(
        weights, torch.where(has_excess, total - weighted_capacity, total), capacity
    )
    weights = weights.where(~is_full, 0)
    rest = total - capacity.where(is_full, 0).sum(dim=1, keepdim=True)
    total_weight = weights.sum(dim=1, keepdim=True)
    return total, _Level(is_full, weights, rest, total_weight.where(total_weight > 0, 1))


def _find_full_bins(weights: Tensor, total: Tensor, capacity: Tensor) -> Tensor:
    """Return the bins that are full at the level where min(capacity, level · weight) adds up to the total.

    Bins fill up in the order of capacity / weight. At the level that fills a bin, all earlier bins are full too, so
    the bin is full if the sum at that level does not exceed the total. The comparison is cross-multiplied, which makes
    it exact in integers.
    """
    is_weighted = weights > 0
    ratio = torch.where(is_weighted, capacity.double() / weights.where(is_weighted, 1), torch.inf)
    order = ratio.argsort(dim=1)
    sorted_weight = weights.gather(1, order)
    sorted_capacity = capacity.where(is_weighted, 0).gather(1, order)
    capacity_before = sorted_capacity.cumsum(dim=1) - sorted_capacity
    remaining_weight = sorted_weight.flip(1).cumsum(dim=1).flip(1)
    is_full = (sorted_weight > 0) & (sorted_capacity * remaining_weight <= (total - capacity_before) * sorted_weight)
    return torch.zeros_like(is_full).scatter(1, order, is_full)


def _add_remainder_(shares: Tensor, total: Tensor, remainder: Tensor) -> Tensor:
    """Add the rest of the total to the bins of highest remainder, one each; modifies `shares` in place."""
    rest = total - shares.sum(dim=1, keepdim=True)
    _, order = sort_rows_with_order(-remainder)
    return shares.scatter_add_(1, order, (torch.arange(order.shape[1], device=order.device) < rest).long())


def _rank_remainders(remainder: Tensor) -> Tensor:
    """Return integers in the order of real remainders, equal where these differ by less than the tolerance."""
    remainder, order = remainder.sort(dim=1)
    is_higher = (remainder[:, 1:] - remainder[:, :-1]) > _TIE_TOLERANCE
    rank = torch.nn.functional.pad(is_higher.cumsum(dim=1), (1, 0))
    return torch.empty_like(rank).scatter_(1, order, rank)


def _check_apportion_inputs(weights: Tensor, total: Tensor, capacity: Tensor) -> None:
    if weights.ndim != 2 or weights.dtype == torch.bool or weights.is_complex():
        raise ValueError(f"weights: expected numbers [batch, bin], got {weights.dtype} {list(weights.shape)}")
    if not weights.shape[1]:
        raise ValueError("weights: expected at least one bin")
    check_shape("total", total, (len(weights),))
    check_shape("capacity", capacity, tuple(weights.shape))
    check_ids("total", total)
    check_ids("capacity", capacity)
    if can_read_values(weights) and weights.numel():
        low, high = (float(bound) for bound in weights.aminmax())  # both NaN if any weight is
        if not (low >= 0 and high < torch.inf):
            raise ValueError("weights: expected finite numbers of at least 0")
        if int(total.min()) < 0:
            raise ValueError(f"total: expected at least 0, got {int(total.min())}")
        if int(capacity.min()) < 0:
            raise ValueError(f"capacity: expected at least 0, got {int(capacity.min())}")
