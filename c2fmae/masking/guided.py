"""The two guided masks: by semantic regions, and by objects and background."""

import torch
from jaxtyping import Bool, Float, Integer, Real
from torch import Tensor

from c2fmae.masking._checks import (
    can_read_values,
    check_batch_by_patch,
    check_ids,
    check_int32_ids,
    check_noise,
    validate_budget,
    validate_fraction,
)
from c2fmae.masking.rounding import apportion, apportion_evenly
from c2fmae.masking.selection import append_index, descending_key, key_by_group, sort_by_group, take_last
from c2fmae.masking.sorting import sort_rows


def semantic_mask(
    regions: Integer[Tensor, "batch patch"],
    noise: Float[Tensor, "batch patch"],
    num_masked: Integer[Tensor, " batch"],
    *,
    weights: Real[Tensor, " class"] | None = None,
    ignore: int = 255,
) -> Bool[Tensor, "batch patch"]:
    """Hide the same fraction of every region (Eq. 5-6), chosen uniformly within each.

    With `weights` by class id, the quota of a region is proportional to weight × size, up to its size; a class of
    weight 0 stays visible as long as the others have patches left. The ignore region has weight 1.

    >>> regions = torch.tensor([[7, 7, 7, 7, 2, 2]])
    >>> semantic_mask(regions, torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]), torch.tensor([3]))
    tensor([[False, False,  True,  True, False,  True]])
    """
    rows = check_batch_by_patch("regions", regions)
    check_int32_ids("regions", regions)
    check_noise(noise, rows)
    budget = validate_budget(num_masked, rows)
    runs = sort_by_group(regions, noise)
    if weights is None:
        return runs.hide(apportion_evenly(runs.size, budget, rows[1]))
    weighted = runs.size * gather_class_weights(runs.group, weights, ignore)
    return runs.hide(apportion(weighted, budget.squeeze(1), runs.size))


def gather_class_weights(
    regions: Integer[Tensor, "batch patch"], weights: Real[Tensor, " class"], ignore: int
) -> Real[Tensor, "batch patch"]:
    """Return the class weight of every patch; 1 for the ignore region."""
    if weights.ndim != 1 or not len(weights) or weights.dtype == torch.bool:
        raise ValueError(f"weights: expected one number per class, got {weights.dtype} {list(weights.shape)}")
    is_ignored = regions == ignore
    if can_read_values(regions) and bool((((regions < 0) | (regions >= len(weights))) & ~is_ignored).any()):
        raise ValueError(
            f"regions: expected ids from 0 to {len(weights) - 1}, as there are {len(weights)} weights, or {ignore}"
        )
    exact = weights.to(regions.device, torch.float64 if weights.is_floating_point() else torch.int64)
    return exact[regions.long().clamp(0, len(weights) - 1)].masked_fill(is_ignored, 1)


def instance_mask(
    instances: Integer[Tensor, "batch patch"],
    noise: Float[Tensor, "batch patch"],
    num_masked: Integer[Tensor, " batch"],
    *,
    object_share: float | Float[Tensor, " batch"],
    ignore: int = 255,
) -> Bool[Tensor, "batch patch"]:
    """Put `object_share` of the hidden patches on objects, the others on background (Eq. 7-8), uniformly within each.

    0 puts them on background first, 1 on objects first. Ids 0 and `ignore` are background. The excess of a side with
    too few patches moves to the other side, so an image without objects is masked uniformly.

    >>> instances = torch.tensor([[0, 0, 0, 0, 1, 2]])
    >>> instance_mask(instances, torch.arange(6.0).unsqueeze(0), torch.tensor([3]), object_share=1.0)
    tensor([[False, False, False,  True,  True,  True]])
    """
    rows = check_batch_by_patch("instances", instances)
    check_ids("instances", instances)
    check_noise(noise, rows)
    budget = validate_budget(num_masked, rows)
    is_background = find_background(instances, ignore)
    weights, total, capacity = build_side_bins(is_background, object_share, budget)
    on_objects, on_background = apportion(weights, total, capacity).split(1, dim=1)
    key = append_index(key_by_group(is_background, descending_key(noise)))
    ordered = sort_rows(key)  # objects first
    last_object, last = take_last(ordered, on_objects), take_last(ordered, capacity[:, :1] + on_background)
    return (key <= last_object) | ((key <= last) & is_background)


def find_background(instances: Integer[Tensor, "batch patch"], ignore: int) -> Bool[Tensor, "batch patch"]:
    """Return whether each patch is on no object."""
    return (instances == 0) | (instances == ignore)


def build_side_bins(
    is_background: Bool[Tensor, "batch patch"],
    object_share: float | Float[Tensor, " batch"],
    budget: Integer[Tensor, "batch 1"],
) -> tuple[Float[Tensor, "batch 2"], Integer[Tensor, " batch"], Integer[Tensor, "batch 2"]]:
    """Return the arguments of `apportion` for the two sides, objects first: weights, total and capacity."""
    on_objects = validate_fraction("object_share", object_share, is_background)
    background = is_background.sum(dim=1, keepdim=True)
    capacity = torch.cat([is_background.shape[1] - background, background], dim=1)
    return torch.cat([on_objects, 1 - on_objects], dim=1), budget.squeeze(1), capacity
