"""All granularities of a batch at once: budgets, masks and the list of what is visible."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from c2fmae.core.granularity import COARSE_TO_FINE
from c2fmae.core.masks import Masks
from c2fmae.masking._checks import check_batch_by_patch, check_ids, check_shape
from c2fmae.masking.policies import POLICIES, MaskNoise, PatchMaps, Policy
from c2fmae.masking.rounding import apportion, sample_shares


def mask_scenes(
    policy: Policy | str,
    regions: Integer[Tensor, "batch patch"],
    instances: Integer[Tensor, "batch patch"],
    *,
    num_visible: int,
    progress: float,
    generator: torch.Generator,
    granularities: Sequence[str] = COARSE_TO_FINE,
    concentration: Sequence[float] | None = None,
    ignore: int = 255,
    grid: tuple[int, int] | None = None,
    global_batch: tuple[int, int] | None = None,
) -> Masks:
    """Hide patches of every granularity so that each image shows `num_visible` in all.

    How many each granularity shows is drawn per image from a Dirichlet law (`concentration`, 1 each unless given).
    A policy may be named to have it with its default options. `grid` is rows and columns of patches, for policies that
    ask where a patch is; a square unless given. `global_batch = (first, total)` says that these are images
    first, first + 1, … of a global batch of `total`: every rank and micro-batch then gets its rows of one draw.

    >>> patches = torch.zeros(2, 196, dtype=torch.long)
    >>> masks = mask_scenes("random", patches, patches, num_visible=98, progress=0, generator=torch.Generator())
    >>> masks.is_masked.shape, masks.visible_idx.shape
    (torch.Size([2, 3, 196]), torch.Size([2, 98]))
    """
    if isinstance(policy, str):
        policy = POLICIES.get(policy)()
    batch, patches = check_batch_by_patch("regions", regions)
    check_ids("regions", regions)
    check_shape("instances", instances, (batch, patches))
    check_ids("instances", instances)
    count = len(granularities)
    if isinstance(granularities, str) or not count or len(set(granularities)) < count:
        raise ValueError(f"granularities: expected different names, got {granularities!r}")
    if not 0 <= num_visible <= count * patches:
        raise ValueError(f"num_visible: {num_visible} patches cannot be visible of {count} × {patches}")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: expected a number in [0, 1], got {progress}")
    offset, total = global_batch or (0, batch)
    if not 0 <= offset <= offset + batch <= total:
        raise ValueError(f"rows: {batch} images from {offset} on do not lie in a batch of {total}")

    concentration = [1.0] * count if concentration is None else concentration
    if len(concentration) != count:
        raise ValueError(f"concentration: expected one number for each of {', '.join(granularities)}")
    draw = draw_noise(total, patches, torch.tensor(concentration, dtype=torch.float64), generator)
    local_draw = _MaskDraw(*(tensor[offset : offset + batch].to(regions.device, non_blocking=True) for tensor in draw))

    capacity = torch.full((batch, count), patches, device=regions.device)
    num_masked = patches - apportion(local_draw.shares, capacity.new_full((batch,), num_visible), capacity)
    semantic, instance, random, tie = local_draw.noise.flatten(0, 1).unbind(1)
    is_masked = policy.hide(
        PatchMaps(repeat_per_granularity(regions, count), repeat_per_granularity(instances, count), ignore, grid),
        num_masked.flatten(),
        MaskNoise(semantic, instance, random, tie, local_draw.image.repeat_interleave(count)),
        progress=progress,
    )
    return Masks.from_mask(is_masked.view(batch, count, patches), granularities, num_visible=num_visible)


class _MaskDraw(NamedTuple):
    """All the randomness of a batch of masks."""

    shares: Float[Tensor, "batch granularity"]
    noise: Float[Tensor, "batch granularity 4 patch"]
    image: Float[Tensor, " batch"]


def draw_noise(
    batch: int, patches: int, concentration: Float[Tensor, " granularity"], generator: torch.Generator
) -> _MaskDraw:
    """Draw everything that is random about the masks of a global batch."""
    device = generator.device
    return _MaskDraw(
        sample_shares(batch, concentration, generator=generator),
        torch.rand(batch, len(concentration), 4, patches, generator=generator, device=device),
        torch.rand(batch, generator=generator, device=device),
    )


def repeat_per_granularity(
    patches: Integer[Tensor, "batch patch"], num_granularities: int
) -> Integer[Tensor, "rows patch"]:
    """Repeat each image's patches for each of its granularities."""
    return patches.unsqueeze(1).expand(-1, num_granularities, -1).reshape(-1, patches.shape[1])
