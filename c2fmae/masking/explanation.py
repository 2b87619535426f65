"""Comparison of the numbers of patches that a policy hides on average in each region, and that a mask hides."""

from typing import NamedTuple

from jaxtyping import Integer
from torch import Tensor

from c2fmae.core.masks import Masks
from c2fmae.masking.guided import find_background
from c2fmae.masking.policies import ExplainablePolicy, PatchMaps, Policy
from c2fmae.masking.scenes import repeat_per_granularity


class Quota(NamedTuple):
    """A group of patches (a region, all objects or the background) in one granularity of one image."""

    image: int
    granularity: str
    group: str
    """`class 7`, `ignore`, `objects` or `background`."""
    num_patches: int
    requested: float | None
    """Average number of these patches that the policy hides, before rounding; None without `mask_probabilities`."""
    num_hidden: int
    """Number of these patches that the mask hides."""


def explain(
    policy: Policy,
    masks: Masks,
    regions: Integer[Tensor, "batch patch"],
    instances: Integer[Tensor, "batch patch"],
    *,
    progress: float,
    ignore: int = 255,
    grid: tuple[int, int] | None = None,
) -> list[Quota]:
    """List requested and realised quotas by semantic class, and by objects and background.

    `requested` is None for a policy without `mask_probabilities`. For a blend it is the average of the three masks,
    which holds over many draws (for the `quota` blend approximately), not for each one.
    """
    batch, count, patches = masks.is_masked.shape
    probabilities = None
    if isinstance(policy, ExplainablePolicy):
        maps = PatchMaps(repeat_per_granularity(regions, count), repeat_per_granularity(instances, count), ignore, grid)
        num_masked = masks.num_masked.flatten()
        probabilities = policy.mask_probabilities(maps, num_masked, progress=progress).view(batch, count, patches)
    is_background = find_background(instances, ignore)
    quotas = []
    for image in range(batch):
        groups = {
            "ignore" if region == ignore else f"class {region}": regions[image] == region
            for region in regions[image].unique().tolist()
        }
        groups |= {"objects": ~is_background[image], "background": is_background[image]}
        for index, granularity in enumerate(masks.granularities):
            for group, is_in in groups.items():
                requested = None if probabilities is None else float(probabilities[image, index, is_in].sum())
                num_hidden = int((is_in & masks.is_masked[image, index]).sum())
                quotas.append(Quota(image, granularity, group, int(is_in.sum()), requested, num_hidden))
    return quotas
