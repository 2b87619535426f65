"""Mixup and CutMix: every image and its label are mixed with those of its neighbour in the batch.

The parameters are drawn once for each step, as in timm's default mode. timm mixes row i with row -1 - i of a process's
batch; neighbours instead stay together when a batch is split, so gradients do not depend on the micro-batch size.
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
    """Parameters of the mixing of a step's images."""

    lam: float = 1.0
    """Weight of the image itself; its neighbour has the rest."""
    box: tuple[int, int, int, int] | None = None
    """Top, bottom, left and right, in cells, of the box that is replaced (CutMix); None for Mixup."""


def sample_mix_params(config: MixingConfig, grid_size: tuple[int, int], rng: np.random.Generator) -> MixParams:
    """Draw the parameters for images of this many cells; CutMix's weight is corrected for boxes cut at the border."""
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
    high = [min(m + side // 2, limit) for m, side, limit in zip(middles, sides, grid_size, strict=True)]
    area = (high[0] - low[0]) * (high[1] - low[1])
    return MixParams(1 - area / (grid_size[0] * grid_size[1]), (low[0], high[0], low[1], high[1]))


def pair_samples(num_samples: int, num_views: int = 1) -> Int64[Tensor, " sample"]:
    """Return the index of the sample that each sample is mixed with: its neighbour.

    If each image has `num_views` consecutive samples, the neighbour is of the next image. A sample without a neighbour
    has its own index.

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
    """Return a granularity's maps mixed with their partners'; Mixup takes ids from the one with the higher weight."""
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
    """Return the mixed and smoothed targets of images."""
    one_hot = torch.nn.functional.one_hot(labels, num_labels).float()
    smoothed = one_hot * (1 - smoothing) + smoothing / num_labels
    return smoothed if lam == 1 else torch.lerp(smoothed[partners], smoothed, lam)
