"""Panoptic quality: the rules of panopticapi on hand-made maps, and on random ones by a naive loop."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.eval.maps.overlaps import count_overlaps
from c2fmae.eval.maps.panoptic import (
    combine_maps,
    count_matched_objects,
    count_matched_segments,
    totals_to_class_qualities,
    totals_to_panoptic_scores,
)
from tests.eval.maps.small_maps import draw_id_maps

Segments = list[tuple[int, Tensor]]
IS_THING = torch.tensor([False, True, True, False])


def _list_segments(semantic: Tensor, instance: Tensor) -> Segments:
    """Return the class and the mask of each segment."""
    segments, rest = [], torch.ones_like(semantic, dtype=torch.bool)
    for number in sorted(set(instance.flatten().tolist()) - {0, 255}):
        mask = instance == number
        areas = [int(((semantic == label) & mask).sum()) if IS_THING[label] else 0 for label in range(4)]
        if max(areas):
            segments.append((areas.index(max(areas)), mask))
            rest &= ~mask
    stuff = [(label, (semantic == label) & rest) for label in (0, 3)]
    return [*segments, *(segment for segment in stuff if segment[1].any())]


def _count_naively(predicted: Segments, truth: Segments, void: Tensor) -> Tensor:
    totals = torch.zeros(4, 4, dtype=torch.float64)
    matched_true, matched_predicted = set(), set()
    for i, (true_class, true_mask) in enumerate(truth):
        for j, (predicted_class, predicted_mask) in enumerate(predicted):
            shared = int((true_mask & predicted_mask).sum())
            union = int((true_mask | predicted_mask).sum()) - int((void & predicted_mask).sum())
            if true_class == predicted_class and shared and shared / union > 0.5:
                totals[0, true_class] += shared / union
                totals[1, true_class] += 1
                matched_true.add(i)
                matched_predicted.add(j)
    for j, (label, mask) in enumerate(predicted):
        if j not in matched_predicted and int((void & mask).sum()) / int(mask.sum()) <= 0.5:
            totals[2, label] += 1
    for i, (label, _) in enumerate(truth):
        totals[3, label] += i not in matched_true
    return totals


@settings(max_examples=40)
@given(draw_id_maps(2, ids=(0, 1, 2, 3, 255)), draw_id_maps(2, ids=(0, 1, 2, 255)))
def test_counts_equal_a_naive_loop(semantic: list[Tensor], instance: list[Tensor]) -> None:
    rows, columns = (min(maps[0].shape[axis] for maps in (semantic, instance)) for axis in (0, 1))
    predicted, truth = ((s[:rows, :columns], i[:rows, :columns]) for s, i in zip(semantic, instance, strict=True))
    segments = _list_segments(*truth)
    void = ~torch.stack([torch.zeros(rows, columns, dtype=torch.bool), *(mask for _, mask in segments)]).any(dim=0)
    expected = _count_naively(_list_segments(*predicted), segments, void)
    totals = count_matched_segments(predicted, truth, IS_THING)
    torch.testing.assert_close(totals, expected)


def _count(predicted: list[int], truth: list[int]) -> list[float]:
    """Return the sum of IoU and the numbers of matched, only predicted and only true objects of maps of one row."""
    table = count_overlaps(torch.tensor([truth]), torch.tensor([predicted]))
    return count_matched_objects(table)[:, 0].tolist()


def test_an_iou_of_exactly_half_is_no_match() -> None:
    assert _count([1, 1, 0, 0], [5, 5, 5, 5]) == [0, 0, 1, 1]
    assert _count([1, 1, 1, 0], [5, 5, 5, 5]) == [0.75, 1, 0, 0]


def test_unlabelled_pixels_are_removed_from_the_union() -> None:
    assert _count([1, 1, 1, 1, 1, 0], [5, 5, 0, 255, 255, 255]) == [pytest.approx(2 / 3), 1, 0, 0]
    assert _count([1, 1, 1, 1, 1, 0], [5, 5, 0, 0, 0, 0]) == [0, 0, 1, 1]


def test_objects_with_more_than_half_of_their_pixels_unlabelled_are_not_counted() -> None:
    assert _count([1, 1, 1, 0], [0, 255, 255, 255]) == [0, 0, 0, 0]
    assert _count([1, 1, 0, 0], [0, 255, 255, 255]) == [0, 0, 1, 0]


def test_predicted_background_and_unlabelled_pixels_match_nothing() -> None:
    assert _count([0, 0, 255, 255], [5, 5, 6, 6]) == [0, 0, 0, 2]


def test_segments_of_other_classes_do_not_match() -> None:
    instance = torch.tensor([[1, 1, 0, 0]])
    truth = torch.tensor([[1, 1, 0, 0]]), instance
    predicted = torch.tensor([[2, 2, 0, 3]]), instance
    totals = count_matched_segments(predicted, truth, IS_THING)
    assert totals.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1], [1, 1, 0, 0]]
    scores = totals_to_panoptic_scores(count_matched_segments(truth, truth, IS_THING))
    assert [value.item() for value in scores.values()] == [1, 1, 1]


def test_objects_have_the_class_of_most_of_their_thing_pixels() -> None:
    semantic = torch.tensor([[0, 0, 0, 2, 1, 3, 1, 255]])
    instance = torch.tensor([[9, 9, 9, 9, 4, 0, 0, 4]])
    ids, classes = combine_maps(semantic, instance, IS_THING)
    assert classes[ids.numpy()].tolist() == [[2, 2, 2, 2, 1, 3, -1, 1]]
    with pytest.raises(UserError, match="ids below 4, the number of classes, got 6"):
        combine_maps(torch.tensor([[6]]), torch.tensor([[0]]), IS_THING)


def test_means_are_over_classes_with_segments_and_qualities_multiply() -> None:
    totals = torch.tensor([[1.5, 0, 0], [2, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0, torch.nan], [0.75, 0, torch.nan], [2 / 3, 0, torch.nan]], dtype=torch.float64)
    torch.testing.assert_close(totals_to_class_qualities(totals), expected, equal_nan=True)
    scores = totals_to_panoptic_scores(totals)
    assert [value.item() for value in scores.values()] == pytest.approx([0.25, 0.375, 1 / 3])
