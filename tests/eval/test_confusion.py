import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.eval.confusion import (
    class_ious,
    class_totals,
    confusion_matrices,
    mean_iou,
    overall_accuracy,
    totals_to_accuracies,
)
from tests.eval.probes.blobs import draw_maps

pytestmark = pytest.mark.numeric


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 3))
def test_labelled_positions_are_counted_once(images: int, num_classes: int, seed: int) -> None:
    predicted, truth = draw_maps(images, num_classes, seed=seed)
    counts = confusion_matrices(predicted, truth, num_classes)
    expected = np.zeros((images, num_classes, num_classes), dtype=np.int64)
    for (image, row, column), class_id in np.ndenumerate(truth.numpy()):
        if class_id != 255:
            expected[image, class_id, predicted[image, row, column]] += 1
    assert counts.tolist() == expected.tolist()


def test_counts_and_scores_equal_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, truth = draw_maps(5, 7, seed=1)
    counts = confusion_matrices(predicted, truth, 7).sum(0)
    is_labelled = truth.flatten() != 255
    pair = truth.flatten()[is_labelled].numpy(), predicted.flatten()[is_labelled].numpy()
    assert counts.tolist() == metrics.confusion_matrix(*pair).tolist()
    assert class_ious(counts).tolist() == pytest.approx(metrics.jaccard_score(*pair, average=None).tolist())
    assert mean_iou(counts).item() == pytest.approx(metrics.jaccard_score(*pair, average="macro"))
    assert overall_accuracy(counts).item() == pytest.approx(metrics.accuracy_score(*pair))


def test_a_class_that_neither_occurs_nor_is_predicted_is_excluded_from_the_mean() -> None:
    counts = confusion_matrices(torch.tensor([[0, 0, 3]]), torch.tensor([[0, 2, 255]]), 4)[0]
    assert class_ious(counts).tolist() == pytest.approx([1 / 2, math.nan, 0, math.nan], nan_ok=True)
    assert mean_iou(counts).item() == 1 / 4


@pytest.mark.parametrize("seed", range(20))
def test_random_maps_have_the_matrix_of_scikit_learn(seed: int) -> None:
    """Also where classes are absent, and where images have no label at all."""
    metrics = pytest.importorskip("sklearn.metrics")
    num_classes = 2 + 3 * seed
    predicted, truth = draw_maps(3, num_classes, seed=seed, side=6)
    truth[seed % 4 :] = 255
    counts = confusion_matrices(predicted.to(torch.uint8), truth, num_classes)
    for image in range(3):
        is_labelled = truth[image] != 255
        pair = truth[image][is_labelled].numpy(), predicted[image][is_labelled].numpy()
        expected = np.zeros((num_classes, num_classes))
        if is_labelled.any():
            expected = metrics.confusion_matrix(*pair, labels=range(num_classes))
        assert np.array_equal(counts[image].numpy(), expected)


def test_accuracies_are_of_the_classes_that_occur() -> None:
    counts = torch.tensor([[3, 1, 0], [0, 2, 2], [0, 0, 0]])
    totals = class_totals(counts)
    assert totals.tolist() == [[3, 2, 0], [4, 4, 0], [3, 3, 2]]
    assert totals_to_accuracies(totals).tolist() == pytest.approx([0.75, 0.5, math.nan], nan_ok=True)
    assert overall_accuracy(counts).item() == 5 / 8


@pytest.mark.parametrize(
    ("predicted", "truth", "invalid"),
    [([[1, 4]], [[1, 2]], 4), ([[1, 2]], [[4, 2]], 4), ([[1, 300]], [[1, 2]], 300), ([[1, 2]], [[-1, 2]], -1)],
)
def test_an_id_of_no_class_is_rejected(predicted: list[list[int]], truth: list[list[int]], invalid: int) -> None:
    message = f"^semantic: expected ids below 3, the number of classes, got {invalid}. Fix the map"
    with pytest.raises(UserError, match=message):
        confusion_matrices(torch.tensor(predicted), torch.tensor(truth), 3)


def test_any_id_may_be_predicted_where_there_is_no_label() -> None:
    counts = confusion_matrices(torch.tensor([[1, 7]]), torch.tensor([[1, 255]]), 3)
    assert counts.sum() == counts[0, 1, 1] == 1
