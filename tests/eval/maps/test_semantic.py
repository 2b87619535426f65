"""Semantic maps: totals equal naive loops, and the assignments of clusters are the best ones."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.eval.confusion import totals_to_ious, totals_to_overall_accuracy
from c2fmae.eval.maps.assignment import assign_rows
from c2fmae.eval.maps.semantic import (
    assign_majority,
    assign_one_to_one,
    count_classes,
    count_named_classes,
    totals_of_assignment,
)
from tests.eval.maps.small_maps import draw_id_maps

few = settings(max_examples=30)


@few
@given(draw_id_maps(2, ids=(0, 1, 2, 255)))
def test_pixels_without_a_predicted_class_are_errors(maps: list[Tensor]) -> None:
    predicted, truth = maps
    totals = count_named_classes(predicted[None], truth[None], 4)[0]
    pairs = [(int(t), int(p)) for t, p in zip(truth.flatten(), predicted.flatten(), strict=True) if t != 255]
    for number in range(4):
        correct = sum(pair == (number, number) for pair in pairs)
        true = sum(t == number for t, _ in pairs)
        assert totals[:, number].tolist() == [correct, true, sum(p == number for _, p in pairs)]
    if pairs:
        accuracy = sum(t == p for t, p in pairs) / len(pairs)
        assert totals_to_overall_accuracy(totals).item() == pytest.approx(accuracy)


@few
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_the_assignment_has_the_highest_sum(rows: int, columns: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 9, (rows, columns)) / 8
    assigned = assign_rows(scores)
    pairs = [(row, column) for row, column in enumerate(assigned.tolist()) if column >= 0]
    assert len(pairs) == len({column for _, column in pairs}) == min(rows, columns)
    wide = scores if rows <= columns else scores.T
    orders = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    best = max(wide[np.arange(len(order)), order].sum() for order in orders)
    assert sum(scores[pair] for pair in pairs) == best


@pytest.mark.parametrize("size", [(7, 7), (5, 8), (8, 5)])
def test_assignments_have_the_sum_of_scipys(size: tuple[int, int]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for scores in np.random.default_rng(0).random((100, *size)):
        assigned = assign_rows(scores)
        rows = np.flatnonzero(assigned >= 0)
        expected = scores[optimize.linear_sum_assignment(scores, maximize=True)].sum()
        assert scores[rows, assigned[rows]].sum() == pytest.approx(expected)


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_no_one_to_one_assignment_of_five_clusters_has_a_higher_mean_iou(num_classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = torch.from_numpy(generator.integers(0, 30, (num_classes, 6)) * generator.integers(0, 2, (num_classes, 6)))
    occurs = counts.sum(dim=1) > 0
    if not occurs.any():
        return

    def score(classes: Tensor) -> float:
        return totals_to_ious(totals_of_assignment(counts, classes))[occurs].mean().item()

    choices = itertools.product(range(-1, num_classes), repeat=5)
    allowed = [c for c in choices if all(c.count(number) <= 1 for number in range(num_classes))]
    best = max(score(torch.tensor(classes)) for classes in allowed)
    assert score(assign_one_to_one(counts)) == pytest.approx(best)


def test_majority_assigns_each_cluster_to_the_class_of_most_of_its_pixels() -> None:
    truth = torch.tensor([[0, 0, 0, 1, 1, 1, 255, 1]])
    clusters = torch.tensor([[4, 4, 0, 0, 0, 2, 3, 255]])
    counts = count_classes(clusters, truth, 2, 5).sum(dim=0)
    assert assign_majority(counts).tolist() == [1, -1, 1, -1, 0]
    assert assign_one_to_one(counts).tolist() == [1, -1, -1, -1, 0]
    assert assign_one_to_one(torch.tensor([[3, 1, 0], [0, 0, 2]])).tolist() == [0, -1]  # not a class without overlap
    majority = totals_of_assignment(counts, assign_majority(counts))
    one_to_one = totals_of_assignment(counts, assign_one_to_one(counts))
    assert majority.tolist() == [[2, 3], [3, 4], [2, 4]]
    assert one_to_one.tolist() == [[2, 2], [3, 4], [2, 3]]


def test_renamed_clusters_have_a_perfect_score_and_merged_ones_a_lower_one() -> None:
    truth = torch.arange(3).repeat_interleave(4).view(1, 3, 4)
    renamed = torch.tensor([5, 0, 3])[truth]
    merged = torch.tensor([5, 0, 0])[truth]
    for assign in (assign_majority, assign_one_to_one):
        scores = []
        for clusters in (renamed, merged):
            counts = count_classes(clusters, truth, 3, 6).sum(dim=0)
            scores.append(totals_to_ious(totals_of_assignment(counts, assign(counts))).nanmean().item())
        assert scores == [1, 0.5 if assign is assign_one_to_one else pytest.approx((1 + 0.5) / 3)]
