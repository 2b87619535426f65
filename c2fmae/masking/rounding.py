"""The one rounding rule of the project, and the shares it is most often asked to round."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Integer, Real
from torch import Tensor

from c2fmae.masking._checks import can_read_values, check_ids, check_shape

_TIE_TOLERANCE = 1e-9
"""Real remainders this near to each other count as equal."""
_TINY = torch.finfo(torch.float64).tiny


def apportion(
    weights: Real[Tensor, "batch bin"],
    total: Integer[Tensor, " batch"],
    capacity: Integer[Tensor, "batch bin"],
) -> Int[Tensor, "batch bin"]:
    """Divide integer totals over bins in proportion to weights, by largest remainder, none above its capacity.

    The shares of a row add up to the total, or to all capacity where that is less, and each is within one of its
    quota min(capacity, λ · weight), λ being the level at which the quotas fit the total. Ties go to the lower
    bin. Bins of weight 0 get, in proportion to their capacity, only what the others cannot hold. Integer weights
    are exact (as long as weight × total and weight × capacity stay below 2^52).

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
    """Divide totals over bins in proportion to their capacity: `apportion` without a look at what is full.

    `patches` is all capacity of a row.
    """
    product = size * total
    share = product // patches
    return _add_remainder_(share, total, product.sub_(share * patches))


def compute_quotas(
    weights: Real[Tensor, "batch bin"],
    total: Integer[Tensor, " batch"],
    capacity: Integer[Tensor, "batch bin"],
) -> Float64[Tensor, "batch bin"]:
    """Return what `apportion` rounds.

    >>> compute_quotas(torch.tensor([[3, 2, 1]]), torch.tensor([10]), torch.tensor([[4, 9, 9]]))
    tensor([[4., 4., 2.]], dtype=torch.float64)
    """
    _, level = _find_level(weights, total, capacity)
    return torch.where(level.is_full, capacity.double(), level.weights.double() * level.rest / level.total_weight)


def sample_shares(
    batch: int, concentration: Float[Tensor, " granularity"], *, generator: torch.Generator
) -> Float64[Tensor, "batch granularity"]:
    """Draw each image's shares from a Dirichlet law: equal and high concentrations give even shares."""
    if concentration.ndim != 1:
        raise ValueError(f"concentration: expected one number per granularity, got shape {list(concentration.shape)}")
    if can_read_values(concentration) and not bool(((concentration > 0) & concentration.isfinite()).all()):
        raise ValueError(f"concentration: expected finite numbers above 0, got {concentration.tolist()}")
    rates = concentration.to(generator.device, torch.float64, non_blocking=True).expand(batch, -1)
    # Tiny concentrations can underflow to 0 in every granularity at once.
    gamma = torch._standard_gamma(rates, generator=generator).clamp(min=_TINY)
    return gamma / gamma.sum(dim=1, keepdim=True)


def _scale_weights(weights: Tensor) -> Tensor:
    """Return weights of at most 1, so that neither sums overflow nor products underflow."""
    return weights / weights.amax(dim=1, keepdim=True).clamp(min=_TINY)


class _Level(NamedTuple):
    """How far a total fills the bins."""

    is_full: Bool[Tensor, "batch bin"]
    """Bins at their capacity."""
    weights: Real[Tensor, "batch bin"]
    """Weights of the bins that share the rest; 0 elsewhere."""
    rest: Int[Tensor, "batch 1"]
    """The rest."""
    total_weight: Real[Tensor, "batch 1"]
    """The sum of their weights, never 0."""


def _find_level(weights: Tensor, total: Tensor, capacity: Tensor) -> tuple[Tensor, _Level]:
    """Return the totals that fit, as a column, and how far they fill the bins."""
    _check_apportion_inputs(weights, total, capacity)
    capacity = capacity.long()
    weights = _scale_weights(weights.double()) if weights.is_floating_point() else weights.long()
    total = total.long().clamp(min=0).unsqueeze(1).minimum(capacity.sum(dim=1, keepdim=True))

    is_weighted = weights > 0
    held = capacity.where(is_weighted, 0).sum(dim=1, keepdim=True)
    spills = total > held  # then the weighted bins are full and the others share what is over
    weights = torch.where(spills, capacity.where(~is_weighted, 0).to(weights.dtype), weights)
    is_full = (spills & is_weighted) | _find_full_bins(weights, torch.where(spills, total - held, total), capacity)
    weights = weights.where(~is_full, 0)
    rest = total - capacity.where(is_full, 0).sum(dim=1, keepdim=True)
    weight = weights.sum(dim=1, keepdim=True)
    return total, _Level(is_full, weights, rest, weight.where(weight > 0, 1))


def _find_full_bins(weights: Tensor, total: Tensor, capacity: Tensor) -> Tensor:
    """Tell which bins are full at the level where min(capacity, level · weight) adds up to the total.

    In order of capacity / weight, the level at which a bin is full fills all bins before it too; so a bin is full
    if that much fits into the total. Cross-multiplied, this is exact in integers.
    """
    is_weighted = weights > 0
    ratio = torch.where(is_weighted, capacity.double() / weights.where(is_weighted, 1), torch.inf)
    order = ratio.argsort(dim=1)
    weight = weights.gather(1, order)
    held = capacity.where(is_weighted, 0).gather(1, order)
    held_before = held.cumsum(dim=1) - held
    weight_from_here = weight.flip(1).cumsum(dim=1).flip(1)
    is_full = (weight > 0) & (held * weight_from_here <= (total - held_before) * weight)
    return torch.zeros_like(is_full).scatter(1, order, is_full)


def _add_remainder_(share: Tensor, total: Tensor, remainder: Tensor) -> Tensor:
    """Give what is missing to a total to the bins of highest remainder, one each; changes `share` in place."""
    rest = total - share.sum(dim=1, keepdim=True)
    order = remainder.argsort(dim=1, descending=True, stable=True)
    return share.scatter_add_(1, order, (torch.arange(order.shape[1], device=order.device) < rest).long())


def _rank_remainders(remainder: Tensor) -> Tensor:
    """Replace real remainders by integers of the same order, equal where they differ by a hair."""
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
        low, high = (float(bound) for bound in weights.aminmax())  # of which not-a-number is neither
        if not (low >= 0 and high < torch.inf):
            raise ValueError("weights: expected finite numbers of at least 0")
        if int(total.min()) < 0:
            raise ValueError(f"total: expected at least 0, got {int(total.min())}")
        if int(capacity.min()) < 0:
            raise ValueError(f"capacity: expected at least 0, got {int(capacity.min())}")
