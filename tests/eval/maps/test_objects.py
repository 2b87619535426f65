"""Instance maps: scores equal naive loops, and change as they should when maps do."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from c2fmae.eval.intervals import bootstrap_scores
from c2fmae.eval.maps.baselines import make_full_image_map, make_middle_box_map
from c2fmae.eval.maps.objects import count_objects, totals_to_object_scores
from c2fmae.eval.maps.overlaps import count_overlaps
from c2fmae.eval.maps.panoptic import count_matched_objects, totals_to_panoptic_scores
from tests.eval.maps.small_maps import draw_id_maps, make_objects

SCORES = ("average_best_overlap", "covering", "recall_50", "recall_75", "panoptic_quality")


def _score(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    table = count_overlaps(truth, predicted)
    scores = totals_to_object_scores(count_objects(table))
    scores |= totals_to_panoptic_scores(count_matched_objects(table))
    return {name: value.item() for name, value in scores.items()}


@settings(max_examples=40)
@given(draw_id_maps(2))
def test_scores_of_objects_equal_naive_loops(maps: list[Tensor]) -> None:
    predicted, truth = maps
    regions = [predicted == number for number in set(predicted.flatten().tolist()) - {0, 255}]
    objects = [truth == number for number in set(truth.flatten().tolist()) - {0, 255}]
    best = []
    for mask in objects:
        ious = [0.0]
        for region in regions:
            visible = region & (truth != 255)
            ious.append(int((mask & visible).sum()) / int((mask | visible).sum()))
        best.append(max(ious))
    areas = [int(mask.sum()) for mask in objects]
    scores = _score(predicted, truth)
    assert scores["true_objects_per_image"] == len(objects)
    assert scores["predicted_objects_per_image"] == len(regions)
    if objects:
        assert scores["average_best_overlap"] == pytest.approx(sum(best) / len(best))
        assert scores["recall_50"] == pytest.approx(sum(iou >= 0.5 for iou in best) / len(best))
        assert scores["recall_75"] == pytest.approx(sum(iou >= 0.75 for iou in best) / len(best))
        covering = sum(area * iou for area, iou in zip(areas, best, strict=True)) / sum(areas)
        assert scores["covering"] == pytest.approx(covering)


def test_an_iou_of_exactly_half_or_three_quarters_recalls_an_object() -> None:
    truth = torch.tensor([[5, 5, 5, 5], [6, 6, 6, 6]])
    scores = _score(torch.tensor([[1, 1, 1, 0], [2, 2, 0, 0]]), truth)
    assert [scores["recall_50"], scores["recall_75"]] == [1, 0.5]


def test_the_truth_has_perfect_scores_with_any_ids() -> None:
    truth = make_objects()
    permuted = truth.clone()
    for old, new in ((1, 300), (2, 1), (3, 65535)):
        permuted[truth == old] = new
    for predicted in (truth, permuted):
        scores = _score(predicted, truth)
        assert [scores[name] for name in SCORES] == [1] * len(SCORES)


def _erode(ids: Tensor) -> Tensor:
    eroded = ids.clone()
    eroded[4:6][ids[4:6] < 3] = 0
    return eroded


def _merge(ids: Tensor) -> Tensor:
    return ids.where(ids != 2, 1)


def _split(ids: Tensor) -> Tensor:
    split = ids.clone()
    split[18:22, 22:34] = 4
    return split


def _remove(ids: Tensor) -> Tensor:
    return ids.where(ids != 1, 0)


@pytest.mark.parametrize(
    ("change", "recalled_50", "recalled_75"),
    [(_erode, 3, 3), (_merge, 2, 1), (_split, 3, 2), (_remove, 2, 2)],
)
def test_changed_maps_have_lower_scores(change: Callable[[Tensor], Tensor], recalled_50: int, recalled_75: int) -> None:
    """A region at exactly half of an object recalls it, but does not match it."""
    truth = make_objects()
    scores = _score(change(truth), truth)
    assert scores["recall_50"] == pytest.approx(recalled_50 / 3)
    assert scores["recall_75"] == pytest.approx(recalled_75 / 3)
    for name in ("average_best_overlap", "covering", "panoptic_quality"):
        assert scores[name] < 1, name


def test_baselines_recall_what_they_should() -> None:
    truth = make_middle_box_map(30, 40)
    assert _score(truth, truth)["average_best_overlap"] == 1
    full = _score(make_full_image_map(30, 40), truth)
    assert full["average_best_overlap"] == pytest.approx(20 * 26 / (30 * 40))  # rows 5-25, columns 7-33
    assert full["recall_50"] == 0


def test_images_without_objects_have_no_scores_and_do_not_change_those_of_others() -> None:
    truth = make_objects()
    empty = torch.zeros_like(truth)
    some = count_objects(count_overlaps(truth, _merge(truth)))
    none = count_objects(count_overlaps(empty, empty))
    assert totals_to_object_scores(none)["average_best_overlap"].isnan()
    both = totals_to_object_scores(torch.stack([some, none]).sum(dim=0))
    assert both["average_best_overlap"] == totals_to_object_scores(some)["average_best_overlap"]
    assert both["true_objects_per_image"] == 1.5


@pytest.mark.numeric
def test_intervals_contain_the_expected_score_in_most_simulations() -> None:
    """Of images with 1 to 4 objects, whose best overlaps are uniform."""
    generator = torch.Generator().manual_seed(0)
    hits, simulations = 0, 100
    for _ in range(simulations):
        totals = torch.zeros(80, 8, dtype=torch.float64)
        numbers = torch.randint(1, 5, (80,), generator=generator)
        ious = torch.rand(80, 4, generator=generator, dtype=torch.float64)
        totals[:, 0], totals[:, 1] = 1, numbers
        totals[:, 3] = (ious * (torch.arange(4) < numbers[:, None])).sum(dim=1)
        low, high = bootstrap_scores(totals, totals_to_object_scores)["average_best_overlap"].interval
        hits += low < 0.5 < high
    assert 89 <= hits <= 100
