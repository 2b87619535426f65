import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.eval.probes.confusion import class_ious, confusion_matrices, mean_iou, overall_accuracy
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


@pytest.mark.parametrize(("predicted", "truth"), [([[1, 4]], [[1, 2]]), ([[1, 2]], [[4, 2]])])
def test_an_id_of_no_class_is_rejected(predicted: list[list[int]], truth: list[list[int]]) -> None:
    with pytest.raises(UserError, match="^semantic: expected ids below 3, the number of classes, got 4. Fix the map"):
        confusion_matrices(torch.tensor(predicted), torch.tensor(truth), 3)
