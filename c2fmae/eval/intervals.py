"""95 % confidence intervals: Wilson's for proportions, and a Poisson bootstrap for scores of sums over images.

Drawing as many images as there are, with replacement, counts each a number of times that is nearly Poisson distributed
with mean 1. Each bootstrap replicate is therefore a sum in which every image has such a weight. A weight depends only
on the seed, the image and the replicate, so partial sums from any number of processes add up to exactly the same.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from c2fmae.core.seeding import derive_seed

NORMAL_QUANTILE_975 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
NUM_REPLICATES = 200

_UInt64Array = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_POISSON_CDF = torch.tensor([math.exp(-1) / math.factorial(n) for n in range(18)], dtype=torch.float64).cumsum(0)


def wilson_interval(proportion: float, count: int, *, scale: float = 1.0) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion of `count` independent trials; in percent with a scale of 100.

    >>> tuple(round(end, 3) for end in wilson_interval(0.5, 100))
    (0.404, 0.596)
    >>> wilson_interval(1, 100, scale=100)[1]
    100.0
    """
    correction = NORMAL_QUANTILE_975**2 / count
    centre = proportion + correction / 2
    half_width = NORMAL_QUANTILE_975 * math.sqrt(proportion * (1 - proportion) / count + correction / (4 * count))
    low, high = (centre - half_width) / (1 + correction), (centre + half_width) / (1 + correction)
    return scale * max(low, 0.0), scale * min(high, 1.0)


def poisson_weights(
    image_indices: Int64[Tensor, " image"], *, seed: int, num_replicates: int = NUM_REPLICATES
) -> Float64[Tensor, "image replicate"]:
    """Return the weight of each image, given by its index in the whole set, in each replicate.

    >>> poisson_weights(torch.tensor([0, 7]), seed=0, num_replicates=8).int().tolist()
    [[0, 2, 0, 0, 2, 1, 0, 1], [2, 1, 3, 0, 1, 1, 2, 3]]
    """
    key = np.uint64(derive_seed(seed, "bootstrap"))
    stream = _mix_splitmix64(key + _GOLDEN_GAMMA * image_indices.cpu().numpy().astype(np.uint64))
    bits = _mix_splitmix64(stream[:, None] + _GOLDEN_GAMMA * np.arange(1, num_replicates + 1, dtype=np.uint64))
    uniform = torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    weights: Tensor = torch.searchsorted(_POISSON_CDF, uniform, right=True)
    return weights.double().to(image_indices.device)


def replicate_sums(
    values: Int64[Tensor, "image *value"] | Float64[Tensor, "image *value"],
    weights: Float64[Tensor, "image replicate"],
) -> Float64[Tensor, "replicate *value"]:
    """Return the weighted sum over images in each replicate. That of integers is exact in any order of the images."""
    return (weights.T @ values.flatten(1).double()).view(-1, *values.shape[1:])


class ScoreInterval(NamedTuple):
    """A score, and its 95 % interval from bootstrap samples of the images."""

    value: float
    interval: tuple[float, float]


def bootstrap_scores(
    totals: Int64[Tensor, "image *value"] | Float64[Tensor, "image *value"],
    compute_scores: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    seed: int = 0,
) -> dict[str, ScoreInterval]:
    """Return scores of sums over images with their intervals.

    `compute_scores` returns each score of the summed totals of an image set, or of each of many.
    """
    replicates = replicate_sums(totals, poisson_weights(torch.arange(len(totals)), seed=seed))
    values, intervals = compute_scores(totals.sum(dim=0)), compute_scores(replicates)
    return {name: ScoreInterval(value.item(), percentile_interval(intervals[name])) for name, value in values.items()}


def percentile_interval(scores: Float64[Tensor, " replicate"]) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of the replicates' scores, without those that are NaN."""
    low, high = scores.nanquantile(torch.tensor([0.025, 0.975]).to(scores)).tolist()
    return low, high


def _mix_splitmix64(numbers: _UInt64Array) -> _UInt64Array:
    """Return 64 pseudo-random bits for each distinct number: the finaliser of SplitMix64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
