import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.eval.confusion import confusion_matrices, mean_iou
from c2fmae.eval.intervals import percentile_interval, poisson_weights, replicate_sums, wilson_interval
from tests.eval.probes.blobs import draw_maps

pytestmark = pytest.mark.numeric


@given(st.integers(1, 100_000), st.floats(0, 1))
def test_the_proportion_is_1_96_deviations_from_the_ends_of_wilsons_interval(n: int, proportion: float) -> None:
    low, high = wilson_interval(proportion, n)
    assert 0 <= low <= proportion + 1e-12
    assert proportion - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            deviations = abs(proportion - end) / math.sqrt(end * (1 - end) / n)
            assert deviations == pytest.approx(1.959964, rel=1e-4)


def test_the_scale_of_an_interval_is_applied() -> None:
    assert wilson_interval(0.3, 50, scale=100) == pytest.approx([100 * end for end in wilson_interval(0.3, 50)])


def test_weights_depend_only_on_the_seed_and_the_image() -> None:
    weights = poisson_weights(torch.arange(50), seed=3)
    assert torch.equal(poisson_weights(torch.tensor([7, 49, 0]), seed=3), weights[[7, 49, 0]])
    assert not torch.equal(poisson_weights(torch.arange(50), seed=4), weights)


def test_weights_are_poisson_distributed_and_uncorrelated() -> None:
    weights = poisson_weights(torch.arange(4000), seed=0)
    for n in range(5):
        expected = math.exp(-1) / math.factorial(n)
        assert (weights == n).double().mean().item() == pytest.approx(expected, abs=0.002)
    correlations = np.corrcoef(weights[:200].numpy())  # of the first 200 images, over replicates
    assert abs(correlations[~np.eye(200, dtype=bool)]).mean() == pytest.approx(math.sqrt(2 / math.pi / 200), rel=0.05)
    correlations = np.corrcoef(weights.T.numpy())
    assert abs(correlations[~np.eye(200, dtype=bool)]).mean() == pytest.approx(math.sqrt(2 / math.pi / 4000), rel=0.05)


@given(st.permutations(range(12)), st.integers(1, 12))
def test_partial_sums_add_up_exactly(order: list[int], batch_size: int) -> None:
    counts = confusion_matrices(*draw_maps(12, 3, seed=0), 3)
    total = replicate_sums(counts, poisson_weights(torch.arange(12), seed=0))
    partial_sums = [
        replicate_sums(counts[images], poisson_weights(images, seed=0))
        for images in torch.tensor(order).split(batch_size)
    ]
    assert torch.equal(torch.stack(partial_sums).sum(0), total)
    expected = (counts[:, None] * poisson_weights(torch.arange(12), seed=0)[..., None, None]).sum(0)
    assert torch.equal(total, expected)


def test_the_bootstrap_interval_is_about_as_wide_as_the_spread_over_other_samples() -> None:
    def count(seed: int) -> Tensor:
        return confusion_matrices(*draw_maps(40, 4, seed=seed, side=4), 4)

    others = torch.stack([mean_iou(count(seed).sum(0)) for seed in range(1, 200)])
    sums = replicate_sums(count(0), poisson_weights(torch.arange(40), seed=0, num_replicates=1000))
    low, high = percentile_interval(mean_iou(sums))
    spread = np.quantile(others.numpy(), [0.025, 0.975])
    assert low < mean_iou(count(0).sum(0)) < high
    assert high - low == pytest.approx(spread[1] - spread[0], rel=0.25)


def test_the_bootstrap_interval_of_one_image_has_no_width() -> None:
    counts = confusion_matrices(*draw_maps(1, 4, seed=0), 4)
    sums = replicate_sums(counts, poisson_weights(torch.tensor([0]), seed=0))
    assert percentile_interval(mean_iou(sums)) == pytest.approx([mean_iou(counts[0]).item()] * 2)
