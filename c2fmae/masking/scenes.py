"""Masks for all granularities of a batch: budgets, hidden patches and the indices of visible ones."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Integer
from torch import Tensor

from c2fmae.core.granularity import COARSE_TO_FINE
from c2fmae.core.masks import Masks
from c2fmae.masking._checks import check_batch_by_patch, check_ids, check_shape
from c2fmae.masking.noise import MaskGenerator, draw_decoding_noise, draw_noise
from c2fmae.masking.policies import POLICIES, PatchMaps, Policy
from c2fmae.masking.rounding import apportion
from c2fmae.masking.selection import select_decoded


def mask_scenes(
    policy: Policy | str,
    regions: Integer[Tensor, "batch patch"],
    instances: Integer[Tensor, "batch patch"],
    *,
    num_visible: int,
    progress: float,
    generator: MaskGenerator,
    granularities: Sequence[str] = COARSE_TO_FINE,
    concentration: Sequence[float] | None = None,
    ignore: int = 255,
    grid: tuple[int, int] | None = None,
    global_batch: tuple[int, int] | None = None,
    num_decoded: int | None = None,
) -> Masks:
    """Hide patches of every granularity so that each image has `num_visible` visible patches in total.

    The number of visible patches of each granularity is drawn per image from a Dirichlet distribution with
    `concentration`, 1 for each granularity by default. A policy given by name has its default options. `regions` and
    `instances` hold the semantic class and the object of each patch, see `patch_regions`. `grid` is (rows, columns) of
    patches, by default a square, for policies that depend on positions. `global_batch = (first, total)` means that
    the images are number first, first + 1, … of a global batch of `total` images: every rank and micro-batch then
    gets its rows of the same draw. `generator` is one of torch, which draws the complete global batch, or a
    `RowGenerator`, which draws only these images.

    With `num_decoded`, the masks also list this many patches of each granularity to decode (see `select_decoded`). One
    noise selects those of all granularities, so a patch that is hidden in several tends to be decoded in all of these,
    and a stage can read the previous stage's features of the same patch.

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
        raise ValueError(f"granularities: expected one or more distinct names, got {granularities!r}")
    if not 0 <= num_visible <= count * patches:
        raise ValueError(f"num_visible: expected 0 to {count} × {patches} patches, got {num_visible}")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: expected a number in [0, 1], got {progress}")
    offset, total = global_batch or (0, batch)
    if not 0 <= offset <= offset + batch <= total:
        raise ValueError(f"global_batch: {batch} images from number {offset} on exceed the total of {total}")

    concentration = [1.0] * count if concentration is None else concentration
    if len(concentration) != count:
        raise ValueError(
            f"concentration: expected one number for each of {', '.join(granularities)}, got {len(concentration)}"
        )
    rates = torch.tensor(concentration, dtype=torch.float64)
    draw = draw_noise(generator, range(offset, offset + batch), total, patches, rates).to(regions.device)

    capacity = torch.full((batch, count), patches, device=regions.device)
    num_masked = patches - apportion(draw.shares, capacity.new_full((batch,), num_visible), capacity)
    is_masked = policy.hide(
        PatchMaps(repeat_per_granularity(regions, count), repeat_per_granularity(instances, count), ignore, grid),
        num_masked.flatten(),
        draw.noise,
        progress=progress,
    )
    masks = Masks.from_mask(is_masked.view(batch, count, patches), granularities, num_visible=num_visible)
    if num_decoded is None:
        return masks
    noise = draw_decoding_noise(generator, range(offset, offset + batch), total, patches).to(regions.device)
    decoded_idx = select_decoded(is_masked, noise.repeat_interleave(count, dim=0), num_decoded)
    return replace(masks, decoded_idx=decoded_idx.view(batch, count, num_decoded))


def repeat_per_granularity(
    patches: Integer[Tensor, "batch patch"], num_granularities: int
) -> Integer[Tensor, "rows patch"]:
    """Return one row per granularity of each image, with the patches of the image."""
    return patches.unsqueeze(1).expand(-1, num_granularities, -1).reshape(-1, patches.shape[1])
