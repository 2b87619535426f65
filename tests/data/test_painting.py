"""Masks become an instance map: every rule equals a naive loop."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch import Tensor

from c2fmae.data.decode import decode_ids
from c2fmae.data.encode import encode_ids
from c2fmae.data.instance_ids import normalise_ignore_id
from c2fmae.data.painting import (
    keep_masks,
    list_instances,
    measure_masks,
    number_instances,
    paint_masks,
    suppress_boxes,
    suppress_masks,
)

few = settings(max_examples=30)
masks_strategy = st.tuples(st.integers(0, 6), st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.bool_, shape).map(torch.from_numpy)
)


def _count_pieces(mask: Tensor) -> int:
    cells = {(int(y), int(x)) for y, x in mask.nonzero()}
    pieces = 0
    while cells:
        pieces += 1
        stack = [cells.pop()]
        while stack:
            y, x = stack.pop()
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if neighbour in cells:
                    cells.remove(neighbour)
                    stack.append(neighbour)
    return pieces


@few
@given(masks_strategy, st.integers(0, 6), st.integers(1, 6))
def test_masks_with_enough_cells_in_few_pieces_are_valid(masks: Tensor, min_cells: int, max_pieces: int) -> None:
    expected = [int(mask.sum()) >= max(min_cells, 1) and _count_pieces(mask) <= max_pieces for mask in masks]
    assert keep_masks(masks, min_cells=min_cells, max_pieces=max_pieces).tolist() == expected


@pytest.mark.parametrize("shape", [(9, 9), (24, 19)])
def test_pieces_of_combs_and_spirals_are_counted(shape: tuple[int, int]) -> None:
    rows, columns = np.indices(shape)
    comb = (columns % 2 == 0) | (rows == shape[0] - 1)  # teeth that are joined in the last row
    spiral = np.maximum(abs(rows - shape[0] // 2), abs(columns - shape[1] // 2)) % 2 == 0  # nested rings
    spiral[: shape[0] // 2, shape[1] // 2] = True  # joined by a spoke
    checkerboard = (rows + columns) % 2 == 0
    masks = torch.from_numpy(np.stack([comb, spiral, checkerboard]))
    pieces = [_count_pieces(mask) for mask in masks]
    assert pieces[0] == 1
    for limit in (1, *(count + step for count in pieces for step in (-1, 0))):
        assert keep_masks(masks, min_cells=0, max_pieces=limit).tolist() == [n <= limit for n in pieces]


def _iou(one: Tensor, other: Tensor) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


def _suppress(order: list[int], overlap: Tensor, max_overlap: float, limit: int) -> list[int]:
    selected: list[int] = []
    for index in order:
        if len(selected) < limit and all(overlap[index, other] <= max_overlap for other in selected):
            selected.append(index)
    return selected


@few
@given(masks_strategy, st.data())
def test_masks_are_suppressed_as_by_a_naive_loop(masks: Tensor, data: st.DataObject) -> None:
    n = len(masks)
    scores = torch.tensor(data.draw(st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=n, max_size=n)))
    candidates = [index for index in range(n) if index % 4 != 3]
    max_overlap = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.8]))
    overlap = torch.tensor([[_iou(a, b) for b in masks] for a in masks]).view(n, n)
    order = sorted(candidates, key=lambda index: (-float(scores[index]), index))
    selected = suppress_masks(
        masks, scores, torch.tensor(candidates, dtype=torch.int64), max_overlap=max_overlap, max_masks=3
    )
    assert selected.tolist() == _suppress(order, overlap, max_overlap, 3)


@few
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 4, st.sampled_from([0.25, 0.5]), st.integers(0, 2)), max_size=7))
def test_boxes_are_suppressed_as_by_a_naive_loop(rows: list[tuple[int, int, int, int, float, int]]) -> None:
    boxes = torch.tensor([[x, y, x + 1 + w, y + 1 + h] for x, y, w, h, _, _ in rows], dtype=torch.float32).view(-1, 4)
    scores, ranks = torch.tensor([row[4] for row in rows]), torch.tensor([row[5] for row in rows], dtype=torch.int64)
    pixels = torch.zeros(len(rows), 10, 10, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(pixels, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    overlap = torch.tensor([[_iou(a, b) for b in pixels] for a in pixels]).view(len(rows), len(rows))

    def key(index: int) -> tuple[float, ...]:
        x0, y0, x1, y1 = boxes[index].tolist()
        return (-float(scores[index]), y0, x0, y1, x1, int(ranks[index]))

    selected = suppress_boxes(boxes, scores, ranks, max_overlap=0.4, max_boxes=5)
    expected = _suppress(sorted(range(len(rows)), key=key), overlap, 0.4, 5)
    assert selected.tolist() == expected


@few
@given(masks_strategy, st.sampled_from([0.0, 0.5, 0.75, 1.0]), st.integers(0, 4), st.randoms(use_true_random=False))
def test_painting_equals_a_naive_loop(masks: Tensor, min_visible: float, min_cells: int, random: object) -> None:
    order = list(range(len(masks)))
    random.shuffle(order)  # type: ignore[attr-defined]
    remaining = list(order)
    while True:
        expected = torch.zeros(masks.shape[1:], dtype=torch.int32)
        for index in remaining:
            expected[masks[index]] = index + 1
        visible = {index: int((expected == index + 1).sum()) for index in remaining}
        hidden = [
            index
            for index in remaining
            if visible[index] < max(min_cells, 1) or visible[index] < min_visible * int(masks[index].sum())
        ]
        if not hidden:
            break
        remaining = [index for index in remaining if index not in hidden]
    painted = paint_masks(masks, order, min_visible=min_visible, min_cells=min_cells)
    assert painted.tolist() == expected.tolist()


def test_a_mask_under_two_removed_ones_appears_again() -> None:
    masks = torch.zeros(3, 1, 8, dtype=torch.bool)
    masks[0] = True
    masks[1, :, :7], masks[2, :, 3:] = True, True
    # 2 hides half of 1, which is removed; then 0 and 2 share the cells.
    assert paint_masks(masks, [0, 1, 2], min_visible=0.5).tolist() == [[0] * 3 + [3] * 5]
    assert paint_masks(masks, [0, 1, 2], min_visible=0.3).tolist() == [[2] * 3 + [3] * 5]


ids_strategy = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.int32, shape, elements=st.sampled_from([0, 1, 2, 7, 255, 300]))
)


@few
@given(ids_strategy, st.sampled_from([255, None]))
def test_objects_are_numbered_by_area_then_by_position(ids: np.ndarray, ignore: int | None) -> None:
    flat = ids.reshape(-1).tolist()
    objects = sorted(
        {id_ for id_ in flat if id_ not in (0, ignore)}, key=lambda id_: (-flat.count(id_), flat.index(id_))
    )
    numbered, instances = number_instances(torch.from_numpy(ids), ignore)
    assert instances.ids.tolist() == objects
    assert instances.areas.tolist() == [flat.count(id_) for id_ in objects]
    table = {0: 0, **({ignore: 255} if ignore else {}), **{id_: number for number, id_ in enumerate(objects, start=1)}}
    assert numbered.dtype == torch.uint8
    assert numbered.reshape(-1).tolist() == [table[id_] for id_ in flat]
    for id_, box in zip(instances.ids, instances.boxes.tolist(), strict=True):
        y, x = np.nonzero(ids == id_)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_300_overlapping_objects_survive_writing_and_reading() -> None:
    masks = torch.zeros(300, 20, 40, dtype=torch.bool)
    for index, (y, x) in enumerate(itertools.product(range(15), range(20))):
        masks[index, y : y + 3, 2 * x : 2 * x + 3] = True  # each hides most of the one before
    numbered, instances = number_instances(paint_masks(masks, range(300), min_visible=0), ignore=None)
    assert sorted(set(numbered.reshape(-1).tolist())) == [*range(255), *range(256, 301), 65535]  # 255: not labelled
    stored = decode_ids(encode_ids(numbered.numpy()), "map")
    assert sorted(set(stored.reshape(-1).tolist())) == list(range(301))
    assert (normalise_ignore_id(stored) == numbered.numpy()).all()
    assert len(instances.ids) == 300


def test_maps_without_objects_have_none() -> None:
    empty = torch.zeros(2, 3, dtype=torch.uint8)
    assert len(list_instances(empty).ids) == 0
    assert number_instances(empty)[0].equal(empty)
    assert paint_masks(torch.zeros(0, 2, 3, dtype=torch.bool), []).tolist() == empty.tolist()
    assert measure_masks(torch.zeros(1, 2, 3, dtype=torch.bool))[1].tolist() == [[0, 0, 0, 0]]
