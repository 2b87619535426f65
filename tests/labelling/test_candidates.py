"""From the masks that a model proposes to the objects of an image."""

import torch
from torch import Tensor

from c2fmae.labelling.candidates import (
    MaskCandidateRules,
    MaskCandidates,
    join_candidates,
    keep_best,
    label_mask_candidates,
    select_candidates,
)


def propose(*masks: tuple[float, slice, slice]) -> MaskCandidates:
    """Return rectangles of 8×8 logits with their scores; their class ids are their positions."""
    logits = torch.full((len(masks), 8, 8), -5.0)
    for mask, (_, rows, columns) in zip(logits, masks, strict=True):
        mask[rows, columns] = 5
    names = tuple(f"name {index}" for index in range(len(masks)))
    return MaskCandidates(logits, torch.tensor([score for score, *_ in masks]), names, tuple(range(len(masks))))


ALL, TOP, LEFT = slice(None), slice(0, 4), slice(0, 2)


def test_candidates_above_the_lowest_threshold_that_overlap_little_are_selected() -> None:
    candidates = propose(
        (0.5, TOP, ALL), (0.9, ALL, LEFT), (0.1, ALL, ALL), (0.6, TOP, slice(0, 7)), (0.95, slice(0, 0), ALL)
    )
    rules = MaskCandidateRules(thresholds=(0.5, 0.2))

    selected = select_candidates(candidates, rules)

    assert selected.class_ids == (1, 3)  # the first overlaps the fourth, and the last is empty
    assert selected.names == ("name 1", "name 3")
    assert selected.scores.tolist() == candidates.scores[[1, 3]].tolist()
    assert selected.logits.equal(candidates.logits[[1, 3]])
    assert select_candidates(candidates, rules.model_copy(update={"max_masks": 1})).class_ids == (1,)
    assert select_candidates(candidates, rules.model_copy(update={"mask_overlap": 1.0})).class_ids == (1, 3, 0)


def test_the_best_candidates_keep_their_order() -> None:
    candidates = propose(*((score, TOP, ALL) for score in (0.2, 0.5, 0.9, 0.5, 0.5)))
    assert keep_best(candidates, 3).class_ids == (1, 2, 3)
    assert keep_best(candidates, 3).logits.equal(candidates.logits[1:4])
    assert keep_best(candidates, 5) is candidates


def test_groups_are_joined_in_their_order() -> None:
    one, other = propose((0.5, TOP, ALL)), propose((0.9, ALL, LEFT), (0.2, ALL, ALL))
    joined = join_candidates([one, other])
    assert joined.class_ids == (0, 0, 1)
    assert joined.scores.tolist() == torch.tensor([0.5, 0.9, 0.2]).tolist()
    assert joined.logits.equal(torch.cat([one.logits, other.logits]))


def test_lower_thresholds_are_tried_only_without_a_large_object() -> None:
    rules = MaskCandidateRules(thresholds=(0.5, 0.4, 0.3), enough_area=0.1, min_area=0)

    def label(*scores: float) -> tuple[Tensor, list[tuple[str | None, float | None]]]:
        small, large, other = (slice(0, 1), slice(0, 1)), (TOP, ALL), (slice(6, 8), ALL)
        candidates = propose(*((score, *mask) for score, mask in zip(scores, (small, large, other), strict=True)))
        result = label_mask_candidates(candidates, stride=2, image_size=(16, 32), rules=rules)
        assert result.metadata["threshold"] in rules.thresholds
        return result.maps["instance"], [(each.class_name, each.threshold) for each in result.objects]

    ids, objects = label(0.9, 0.45, 0.35)
    assert ids.shape == (8, 16)
    assert objects == [("name 1", 0.4), ("name 0", 0.5)]
    assert label(0.9, 0.8, 0.45)[1] == [("name 1", 0.5), ("name 0", 0.5)]
    assert label(0.2, 0.2, 0.35)[1] == [("name 2", 0.3)]


def test_masks_are_resized_to_the_stored_cells_of_the_image() -> None:
    rules = MaskCandidateRules(thresholds=(0.0,), min_area=0)
    candidates = propose((0.5, ALL, slice(0, 4)), (0.4, ALL, slice(6, 8)))
    full = label_mask_candidates(candidates, stride=1, image_size=(80, 40), rules=rules)
    expected = torch.zeros(80, 40, dtype=torch.uint8)
    expected[:, :20] = 1
    expected[:, 30:] = 2
    assert full.maps["instance"].equal(expected)
    assert [each.box for each in full.objects] == [(0, 0, 20, 80), (30, 0, 40, 80)]
    cells = label_mask_candidates(candidates, stride=4, image_size=(80, 40), rules=rules)
    assert cells.maps["instance"].equal(expected[2::4, 2::4])


def test_no_candidate_gives_an_empty_map_of_the_size_of_the_image() -> None:
    candidates = select_candidates(propose((0.1, ALL, ALL)), MaskCandidateRules())
    result = label_mask_candidates(candidates, stride=4, image_size=(30, 41), rules=MaskCandidateRules())
    assert result.maps["instance"].equal(torch.zeros(8, 11, dtype=torch.uint8))
    assert (result.objects, result.metadata) == ((), {"threshold": 0.2})
