"""Mixup and CutMix: every image is mixed with its neighbour in the batch, and so are their labels.

How, is drawn once for a step, as timm does by default. Unlike timm's, whose partner is the mirror image's place in a
process's batch, neighbours stay together however a batch is parted: so many small parts learn what the big one does.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from c2fmae.core.granularity import GRANULARITIES
from c2fmae.eval.classification.config import MixingConfig


@dataclass(frozen=True)
class MixParams:
    """How a step's images are mixed."""

    lam: float = 1.0
    """How much of an image is its own."""
    box: tuple[int, int, int, int] | None = None
    """Top, bottom, left and right, in cells, of what it has from its neighbour (CutMix); without, all is blended."""


def sample_mix_params(config: MixingConfig, grid_size: tuple[int, int], rng: np.random.Generator) -> MixParams:
    """Draw how images of so many cells are mixed; CutMix's share is that of its box as it fits into the image."""
    mix_noise, cutmix_noise, *centre = rng.random(4)
    is_cut = config.cutmix > 0 and (config.mixup == 0 or cutmix_noise < config.cutmix_chance)
    alpha = config.cutmix if is_cut else config.mixup
    if mix_noise >= config.chance or alpha == 0:
        return MixParams()
    lam = float(rng.beta(alpha, alpha))
    if not is_cut:
        return MixParams(lam)
    sides = [int(side * math.sqrt(1 - lam)) for side in grid_size]
    middles = [int(side * u) for side, u in zip(grid_size, centre, strict=True)]
    low = [max(middle - side // 2, 0) for middle, side in zip(middles, sides, strict=True)]
    high = [min(m + side // 2, most) for m, side, most in zip(middles, sides, grid_size, strict=True)]
    area = (high[0] - low[0]) * (high[1] - low[1])
    return MixParams(1 - area / (grid_size[0] * grid_size[1]), (low[0], high[0], low[1], high[1]))


def pair_samples(num_samples: int, num_views: int = 1) -> Int64[Tensor, " sample"]:
    """Return who is mixed with whom: pairs, of other photos where `num_views` of one stand side by side.

    What has nobody left is left to itself.

    >>> pair_samples(5)
    tensor([1, 0, 3, 2, 4])
    >>> pair_samples(6, num_views=2)
    tensor([2, 3, 0, 1, 4, 5])
    """
    rows = torch.arange(num_samples)
    partners = ((rows // num_views) ^ 1) * num_views + rows % num_views
    return torch.where(partners < num_samples, partners, rows)


def mix_map(
    granularity: str,
    values: Shaped[Tensor, "batch *map"],
    mix_params: MixParams,
    grid_size: tuple[int, int],
    partners: Int64[Tensor, " sample"],
) -> Tensor:
    """Return a granularity's maps mixed with others; blended ids are those of whoever has more of the image."""
    if mix_params == MixParams():
        return values
    partner_values = values[partners]
    if mix_params.box is None:
        if GRANULARITIES.get(granularity).kind == "ids":
            return values if mix_params.lam >= 0.5 else partner_values
        return torch.lerp(partner_values, values, mix_params.lam)
    top, bottom, left, right = mix_params.box
    rows, columns = values.shape[-2] // grid_size[0], values.shape[-1] // grid_size[1]
    mixed = values.clone()
    box = (..., slice(top * rows, bottom * rows), slice(left * columns, right * columns))
    mixed[box] = partner_values[box]
    return mixed


def mix_targets(
    labels: Int64[Tensor, " sample"],
    num_labels: int,
    *,
    lam: float,
    smoothing: float,
    partners: Int64[Tensor, " sample"],
) -> Float[Tensor, "sample label"]:
    """Return what is to be predicted: an image's own label by its share, the other's by the rest, smoothed."""
    one_hot = torch.nn.functional.one_hot(labels, num_labels).float()
    smoothed = one_hot * (1 - smoothing) + smoothing / num_labels
    return smoothed if lam == 1 else torch.lerp(smoothed[partners], smoothed, lam)
