"""How sure a score of a sum over photos is, found out while the sum is made: an online Poisson bootstrap.

Drawing as many photos again, with replacement, gives each a weight that is all but Poisson with mean 1. So each
replicate keeps a sum of its own, in which every photo counts as often as its weight says. A weight is a function of
the seed, the photo and the replicate: sums over parts, wherever they are made, add up to exactly the same.
"""

import math

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from c2fmae.core.seeding import derive_seed

NUM_REPLICATES = 200
_UInt64Array = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_POISSON_CDF = torch.tensor([math.exp(-1) / math.factorial(n) for n in range(18)], dtype=torch.float64).cumsum(0)


def poisson_weights(
    image_indices: Int64[Tensor, " photo"], *, seed: int, num_replicates: int = NUM_REPLICATES
) -> Float64[Tensor, "photo replicate"]:
    """Return how often each photo, by its index in the whole set, counts in each replicate.

    >>> poisson_weights(torch.tensor([0, 7]), seed=0, num_replicates=8).int().tolist()
    [[0, 2, 0, 0, 2, 1, 0, 1], [2, 1, 3, 0, 1, 1, 2, 3]]
    """
    key = np.uint64(derive_seed(seed, "bootstrap"))
    stream = _mix_splitmix64(key + _GOLDEN_GAMMA * image_indices.cpu().numpy().astype(np.uint64))
    bits = _mix_splitmix64(stream[:, None] + _GOLDEN_GAMMA * np.arange(1, num_replicates + 1, dtype=np.uint64))
    uniform = torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    times: Tensor = torch.searchsorted(_POISSON_CDF, uniform, right=True)
    return times.double().to(image_indices.device)


def replicate_sums(
    values: Int64[Tensor, "photo *value"], weights: Float64[Tensor, "photo replicate"]
) -> Float64[Tensor, "replicate *value"]:
    """Return the sum over photos of integers, by weight, in each replicate: exact, so in any order and in any parts."""
    return (weights.T @ values.flatten(1).double()).view(-1, *values.shape[1:])


def percentile_interval(scores: Float64[Tensor, " replicate"]) -> tuple[float, float]:
    """Return between which two numbers lie the middle 95 % of the replicates' scores."""
    low, high = scores.nanquantile(torch.tensor([0.025, 0.975]).to(scores)).tolist()
    return low, high


def _mix_splitmix64(numbers: _UInt64Array) -> _UInt64Array:
    """Return 64 bits that look independent, for numbers that need only differ: the finaliser of SplitMix64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
