import math

import pytest
import torch
from torch import Tensor

from c2fmae.eval.confusion import class_totals, confusion_matrices
from c2fmae.eval.segmentation.scores import SegmentationScores
from tests.eval.probes.blobs import draw_maps

pytestmark = pytest.mark.numeric


def make_scores(counts: Tensor) -> SegmentationScores:
    """Return the scores of images with these confusion matrices."""
    return SegmentationScores(counts.sum(dim=0), class_totals(counts))


def test_pixels_of_all_images_are_counted_together() -> None:
    """The mean of the images' IoU is another number, which metrics of some libraries return."""
    counts = torch.tensor([[[90, 10], [0, 0]], [[0, 0], [5, 5]]])
    scores = make_scores(counts)
    assert scores.ious.tolist() == [90 / 105, 5 / 20]
    assert scores.mean_iou == pytest.approx((90 / 105 + 5 / 20) / 2)
    assert scores.mean_accuracy == pytest.approx((0.9 + 0.5) / 2)
    assert scores.pixel_accuracy == pytest.approx(95 / 110)
    assert scores.image_ious().tolist() == pytest.approx([(0.9 + 0) / 2, (0 + 0.5) / 2])
    assert scores.image_ious().mean().item() != pytest.approx(scores.mean_iou, abs=0.1)
    assert (scores.num_images, scores.num_pixels) == (2, 110)


def test_classes_that_neither_occur_nor_are_predicted_do_not_enter() -> None:
    """A class that is only predicted counts as 0 in the mean IoU, and not at all in the mean accuracy."""
    counts = torch.zeros(1, 5, 5, dtype=torch.int64)
    counts[0, 0, 0], counts[0, 0, 1], counts[0, 3, 3] = 6, 2, 4
    scores = make_scores(counts)
    assert scores.num_scored_classes == 3
    assert scores.mean_iou == pytest.approx((6 / 8 + 0 + 1) / 3)
    assert scores.mean_accuracy == pytest.approx((6 / 8 + 1) / 2)
    assert scores.images_with_class().tolist() == [1, 0, 0, 1, 0]


def test_an_image_without_labels_has_no_score_of_its_own() -> None:
    predicted, truth = draw_maps(3, 4, seed=0)
    truth[1] = 255
    scores = make_scores(confusion_matrices(predicted, truth, 4))
    assert [math.isnan(iou) for iou in scores.image_ious().tolist()] == [False, True, False]
    assert not math.isnan(scores.mean_iou)


def test_intervals_contain_the_score_and_shrink_with_more_images() -> None:
    widths = []
    for count in (20, 320):
        predicted, truth = draw_maps(count, 4, seed=0)
        scores = make_scores(confusion_matrices(predicted, truth, 4))
        bootstrap = scores.bootstrap()
        assert set(bootstrap) == {"mean_iou", "mean_accuracy", "pixel_accuracy"}
        for name, (value, (low, high)) in bootstrap.items():
            assert value == getattr(scores, name)
            assert low < value < high
        low, high = bootstrap["mean_iou"].interval
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
