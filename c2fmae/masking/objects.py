"""Selection of the objects that guide the instance mask."""

import math

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from c2fmae.masking._checks import check_batch_by_patch, check_int32_ids
from c2fmae.masking.selection import hide_lowest, sort_by_group


def select_instances(
    instances: Integer[Tensor, "batch patch"],
    max_objects: int,
    *,
    grid: tuple[int, int] | None = None,
    ignore: int = 255,
) -> Integer[Tensor, "batch patch"]:
    """Keep the `max_objects` largest and most central objects of every image; set the others to background.

    An object's score is the sum over its patches, from 1 for a patch in the centre to ½ in a corner; ties go to the
    lower id. `grid` is (rows, columns) of patches, by default a square.

    >>> select_instances(torch.tensor([[1, 1, 0, 0, 2, 0, 3, 3, 3]]), 2)
    tensor([[1, 1, 0, 0, 0, 0, 3, 3, 3]])
    """
    batch, patches = check_batch_by_patch("instances", instances)
    check_int32_ids("instances", instances)
    if max_objects < 0:
        raise ValueError(f"max_objects: expected at least 0, got {max_objects}")
    runs = sort_by_group(instances, torch.zeros(batch, patches, device=instances.device))
    centrality = _patch_centrality(grid or _square_grid(patches), instances.device).take(runs.order)
    weight = torch.zeros_like(runs.size).scatter_add_(1, runs.run, centrality)
    weight = weight.masked_fill((runs.group == 0) | (runs.group == ignore), 0)
    num_selected = torch.full((batch, 1), max_objects, device=instances.device).clamp(max=weight.shape[1])
    is_selected_run = hide_lowest(-weight, num_selected) & (weight > 0)
    is_selected = runs.to_patches(is_selected_run.gather(1, runs.run))
    return instances.where(is_selected | (instances == ignore), 0)


def _patch_centrality(grid: tuple[int, int], device: torch.device) -> Int[Tensor, " patch"]:
    """Return the score of every patch, in thousandths: integer sums do not depend on their order."""
    rows, columns = (torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device) for n in grid)
    distance = (rows.square().unsqueeze(1) + columns.square()).sqrt() / math.sqrt(2)
    return (1000 * (1 - distance / 2)).round().long().flatten()


def _square_grid(patches: int) -> tuple[int, int]:
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"grid: {patches} patches are not a square. Pass grid=(rows, columns)")
    return side, side
