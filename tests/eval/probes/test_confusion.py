import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.eval.probes.bootstrap import percentile_interval, poisson_weights, replicate_sums
from c2fmae.eval.probes.confusion import class_ious, confusion_matrices, mean_iou, overall_accuracy

pytestmark = pytest.mark.numeric


def maps(photos: int, num_classes: int, *, seed: int, share_right: float = 0.6, side: int = 8) -> tuple[Tensor, Tensor]:
    """What was found in photos, and what is there: mostly the same, and a tenth to ignore."""
    generator = torch.Generator().manual_seed(seed)
    size = (photos, side, side)
    truth = torch.randint(num_classes, size, generator=generator)
    other = torch.randint(num_classes, size, generator=generator)
    found = torch.where(torch.rand(size, generator=generator) < share_right, truth, other)
    return found, torch.where(torch.rand(size, generator=generator) < 0.1, 255, truth).to(torch.uint8)


# --- counts


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 3))
def test_each_place_that_is_asked_is_counted_once_where_it_belongs(photos: int, num_classes: int, seed: int) -> None:
    found, truth = maps(photos, num_classes, seed=seed)
    counts = confusion_matrices(found, truth, num_classes)
    expected = np.zeros((photos, num_classes, num_classes), dtype=np.int64)
    for (photo, row, column), there in np.ndenumerate(truth.numpy()):
        if there != 255:
            expected[photo, there, found[photo, row, column]] += 1
    assert counts.tolist() == expected.tolist()


def test_counts_and_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found, truth = maps(5, 7, seed=1)
    counts = confusion_matrices(found, truth, 7).sum(0)
    asked = truth.flatten() != 255
    pair = truth.flatten()[asked].numpy(), found.flatten()[asked].numpy()
    assert counts.tolist() == metrics.confusion_matrix(*pair).tolist()
    assert class_ious(counts).tolist() == pytest.approx(metrics.jaccard_score(*pair, average=None).tolist())
    assert mean_iou(counts).item() == pytest.approx(metrics.jaccard_score(*pair, average="macro"))
    assert overall_accuracy(counts).item() == pytest.approx(metrics.accuracy_score(*pair))


def test_a_class_that_is_neither_there_nor_found_has_no_score_and_no_part_in_the_mean() -> None:
    counts = confusion_matrices(torch.tensor([[0, 0, 3]]), torch.tensor([[0, 2, 255]]), 4)[0]
    assert class_ious(counts).tolist() == pytest.approx([1 / 2, math.nan, 0, math.nan], nan_ok=True)
    assert mean_iou(counts).item() == 1 / 4


@pytest.mark.parametrize(("found", "truth"), [([[1, 4]], [[1, 2]]), ([[1, 2]], [[4, 2]])])
def test_an_id_that_no_class_has_is_refused(found: list[list[int]], truth: list[list[int]]) -> None:
    with pytest.raises(UserError, match="^semantic: expected ids below 3, as many as there are classes, found 4$"):
        confusion_matrices(torch.tensor(found), torch.tensor(truth), 3)


# --- intervals


def test_weights_are_a_function_of_the_seed_and_the_photo_alone() -> None:
    whole = poisson_weights(torch.arange(50), seed=3)
    assert torch.equal(poisson_weights(torch.tensor([7, 49, 0]), seed=3), whole[[7, 49, 0]])
    assert not torch.equal(poisson_weights(torch.arange(50), seed=4), whole)


def test_weights_are_poisson_and_do_not_depend_on_each_other() -> None:
    weights = poisson_weights(torch.arange(4000), seed=0)
    for n in range(5):
        expected = math.exp(-1) / math.factorial(n)
        assert (weights == n).double().mean().item() == pytest.approx(expected, abs=0.002)
    together = np.corrcoef(weights[:200].numpy())  # of 4000 photos, the first 200 over replicates
    assert abs(together[~np.eye(200, dtype=bool)]).mean() == pytest.approx(math.sqrt(2 / math.pi / 200), rel=0.05)
    together = np.corrcoef(weights.T.numpy())
    assert abs(together[~np.eye(200, dtype=bool)]).mean() == pytest.approx(math.sqrt(2 / math.pi / 4000), rel=0.05)


@given(st.permutations(range(12)), st.integers(1, 12))
def test_sums_over_any_parts_add_up_to_exactly_the_same(order: list[int], size: int) -> None:
    counts = confusion_matrices(*maps(12, 3, seed=0), 3)
    whole = replicate_sums(counts, poisson_weights(torch.arange(12), seed=0))
    parts = [
        replicate_sums(counts[photos], poisson_weights(photos, seed=0)) for photos in torch.tensor(order).split(size)
    ]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    by_hand = (counts[:, None] * poisson_weights(torch.arange(12), seed=0)[..., None, None]).sum(0)
    assert torch.equal(whole, by_hand)


def test_the_interval_is_about_as_wide_as_scores_of_other_photos_spread() -> None:
    def score(seed: int) -> Tensor:
        return confusion_matrices(*maps(40, 4, seed=seed, side=4), 4)

    others = torch.stack([mean_iou(score(seed).sum(0)) for seed in range(1, 200)])
    sums = replicate_sums(score(0), poisson_weights(torch.arange(40), seed=0, num_replicates=1000))
    low, high = percentile_interval(mean_iou(sums))
    spread = np.quantile(others.numpy(), [0.025, 0.975])
    assert low < mean_iou(score(0).sum(0)) < high
    assert high - low == pytest.approx(spread[1] - spread[0], rel=0.25)


def test_one_photo_alone_has_an_interval_of_one_score() -> None:
    counts = confusion_matrices(*maps(1, 4, seed=0), 4)
    sums = replicate_sums(counts, poisson_weights(torch.tensor([0]), seed=0))
    assert percentile_interval(mean_iou(sums)) == pytest.approx([mean_iou(counts[0]).item()] * 2)
