"""The rules from masks to objects: what is selected, what is on top, and what an object records."""

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from c2fmae.labelling.objects import ObjectRules, finish_objects, select_masks
from c2fmae.labelling.protocol import LabelledObject

SIZE = (20, 30)
RULES = ObjectRules(min_area=0.01)


def rectangle(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


class Finished(NamedTuple):
    indices: list[int | None]
    """The masks of the objects, which are their class ids."""
    ids: Tensor
    objects: tuple[LabelledObject, ...]


def finish(
    masks: list[Tensor], scores: list[float], rules: ObjectRules = RULES, qualities: Tensor | None = None
) -> Finished:
    n = len(masks)
    ids, objects = finish_objects(
        torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=torch.bool),
        torch.tensor(scores),
        [f"name {index}" for index in range(n)],
        list(range(n)),
        [score / 2 for score in scores],
        stride=1,
        image_size=SIZE,
        rules=rules,
        qualities=qualities,
    )
    return Finished([each.class_id for each in objects], ids, objects)


def test_an_object_records_its_mask_and_what_is_visible_of_it() -> None:
    large, small = rectangle(2, 3, 10, 20), rectangle(4, 18, 6, 8)
    indices, ids, objects = finish([small, large], [0.5, 0.75])
    assert indices == [1, 0]  # by visible area, the largest first
    visible = large & ~small  # the smaller one is on top
    assert ids.equal(visible.byte() + 2 * small.byte())
    first, second = objects
    assert (first.area, first.box, first.score, first.class_name, first.threshold) == (
        int(visible.sum()),
        (3, 2, 23, 12),
        0.75,
        "name 1",
        0.375,
    )
    assert (second.id, second.area, second.box) == (2, 48, (18, 4, 26, 10))


def test_the_order_of_painting_is_by_area_or_by_score() -> None:
    large, small = rectangle(0, 0, 10, 10), rectangle(8, 0, 4, 10)
    for order, on_top in (("area", small), ("score", large)):
        _, ids, objects = finish([large, small], [0.9, 0.3], ObjectRules(order=order))
        number = 1 + [each.class_id for each in objects].index(0 if order == "score" else 1)
        assert (ids == number).equal(on_top)


def test_equal_areas_are_ordered_by_score_then_by_box() -> None:
    one, other = rectangle(0, 0, 10, 10), rectangle(4, 0, 10, 10)
    for scores, on_top in (([0.9, 0.3], one), ([0.3, 0.9], other), ([0.5, 0.5], other)):
        _, ids, _ = finish([one, other], scores)
        assert (ids == 1).equal(on_top)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (ObjectRules(min_area=0), [0, 1, 3]),  # 2 is in 35 pieces
        (ObjectRules(min_area=0, max_pieces=35), [0, 1, 3, 2]),
        (ObjectRules(min_area=0.01), [0, 1]),  # 3 has fewer than 6 pixels
        (ObjectRules(min_area=0, min_score=0.45), [0]),
        (ObjectRules(min_area=0, max_objects=2), [0, 3]),
    ],
)
def test_masks_that_break_a_rule_are_removed(rules: ObjectRules, expected: list[int | None]) -> None:
    dots = torch.zeros(SIZE, dtype=torch.bool)
    dots[11::2, 0:14:2] = True
    dots[:, 14:] = False
    masks = [rectangle(0, 0, 8, 10), rectangle(0, 12, 5, 5), dots, rectangle(0, 25, 1, 5)]
    assert int(dots.sum()) == 35
    indices, _, _ = finish(masks, [0.5, 0.3, 0.2, 0.4], rules)
    assert set(indices) == set(expected)


def test_a_mask_with_a_low_predicted_iou_is_removed() -> None:
    masks = [rectangle(0, 0, 5, 5), rectangle(10, 0, 5, 5)]
    indices, _, _ = finish(masks, [0.5, 0.5], qualities=torch.tensor([0.49, 0.5]))
    assert indices == [1]


def test_of_two_equal_masks_the_one_with_the_higher_score_is_selected() -> None:
    one, other = rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 9)  # IoU 0.9
    assert finish([one, other], [0.3, 0.4])[0] == [1]
    assert finish([one, other], [0.3, 0.4], ObjectRules(mask_overlap=0.9, min_visible=0.05))[0] == [1, 0]


def test_a_mask_that_is_mostly_hidden_is_removed() -> None:
    large, small = rectangle(0, 0, 10, 10), rectangle(0, 0, 6, 10)
    assert finish([large, small], [0.5, 0.5])[0] == [1]
    assert finish([large, small], [0.5, 0.5], ObjectRules(min_visible=0.4))[0] == [1, 0]


def test_no_masks_are_an_empty_map() -> None:
    indices, ids, objects = finish([], [])
    assert (indices, objects) == ([], ())
    assert ids.equal(torch.zeros(SIZE, dtype=torch.uint8))


def test_areas_are_counted_in_pixels_at_any_stride() -> None:
    """At stride 4 a mask of 2 cells has 32 of 80 × 120 pixels."""
    masks, scores = torch.stack([rectangle(0, 0, 1, 2)]), torch.tensor([0.5])
    for min_area, expected in ((32 / 9600, True), (33 / 9600, False)):
        rules = ObjectRules(min_area=min_area)
        assert select_masks(masks, scores, stride=4, image_size=(80, 120), rules=rules).tolist() == [expected]
    _, (found,) = finish_objects(
        masks, scores, [None], [None], [None], stride=4, image_size=(80, 118), rules=ObjectRules(min_area=0)
    )
    assert (found.area, found.box) == (32, (0, 0, 8, 4))


MEMORY = """
import resource, sys, torch
from c2fmae.labelling.candidates import MaskCandidateRules, MaskCandidates, label_mask_candidates
torch.set_num_threads(1)
n, size, stride = 100, (3000, 4000), int(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
logits = torch.full((n, 72, 96), -1.0)
for index, mask in enumerate(logits):
    top, left = 6 * (index // 10), 8 * (index % 10)
    mask[top : top + 12, left : left + 16] = 1
candidates = MaskCandidates(logits, 0.2 + torch.arange(n) % 7 / 10, ("name",) * n, (None,) * n)
rules = MaskCandidateRules(thresholds=(0.5, 0.1), enough=1000, min_visible=0)
label_mask_candidates(candidates, stride=100, image_size=size, rules=rules)
before = peak()
result = label_mask_candidates(candidates, stride=stride, image_size=size, rules=rules)
assert len(result.objects) > 30
assert {each.threshold for each in result.objects} == {0.5, 0.1}
print(round(peak() - before))
"""


@pytest.mark.unchecked
@pytest.mark.slow
@pytest.mark.parametrize(("stride", "megabytes"), [(4, 1000), (1, 2000)])
def test_memory_of_100_masks_of_a_large_image_is_bounded(stride: int, megabytes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(stride)], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(done.stdout) < megabytes
