"""What a mask was asked to hide, and what it hid."""

from typing import NamedTuple

import torch
from jaxtyping import Integer
from torch import Tensor

from c2fmae.core.masks import Masks
from c2fmae.masking.guided import instances_to_sides
from c2fmae.masking.policies import PatchMaps, Policy
from c2fmae.masking.scenes import repeat_per_granularity


class Quota(NamedTuple):
    """One region, or one side of the objects' border, in one granularity of one image."""

    image: int
    granularity: str
    group: str
    """`class 7`, `ignore`, `objects` or `background`."""
    num_patches: int
    requested: float
    """How many of them the policy wants hidden, before rounding."""
    num_hidden: int
    """How many of them are."""


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
    """List asked and realised quotas by semantic class and by objects and background.

    A blend asks for the average of its three masks, which holds over many draws (for `quota`, nearly) and not for each.
    """
    batch, count, patches = masks.is_masked.shape
    maps = PatchMaps(repeat_per_granularity(regions, count), repeat_per_granularity(instances, count), ignore, grid)
    probabilities = policy.odds(maps, masks.num_masked.flatten(), progress=progress).view(batch, count, patches)
    side = instances_to_sides(instances, ignore)
    quotas = []
    for image in range(batch):
        groups = {
            "ignore" if region == ignore else f"class {region}": regions[image] == region
            for region in regions[image].unique().tolist()
        }
        groups |= {"objects": side[image] == 0, "background": side[image] == 1}
        for index, granularity in enumerate(masks.granularities):
            is_masked, asked = masks.is_masked[image, index], probabilities[image, index]
            quotas += [
                Quota(
                    image,
                    granularity,
                    group,
                    int(is_in.sum()),
                    float(torch.where(is_in, asked, 0).sum()),
                    int((is_in & is_masked).sum()),
                )
                for group, is_in in groups.items()
            ]
    return quotas
