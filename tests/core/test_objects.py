import numpy as np
import pytest
import torch
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.objects import Objects, crop_objects, resize_objects
from c2fmae.core.rle import decode_mask, encode_mask
from c2fmae.data.geometry import resized_crop_ids

Masks = list[np.ndarray]


def make_objects(masks: Masks, *, boxes_only: bool = False) -> Objects:
    boxes = [find_box(mask) if mask.any() else [0, 0, 0, 0] for mask in masks]
    numbers = torch.arange(len(masks))
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        numbers % 3,
        numbers % 4 == 3,
        torch.tensor([float(mask.sum()) for mask in masks]),
        numbers + 100,
        None if boxes_only else tuple(map(encode_mask, masks)),
    )


def find_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def random_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a mask of one of the kinds that data have: a blob, single pixels, a bar, all of the image, nothing."""
    mask = np.zeros((height, width), np.uint8)
    kind = rng.integers(5)
    top, left = rng.integers(height), rng.integers(width)
    if kind == 0:
        part = mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)]
        part[:] = rng.random(part.shape) < 0.7
    elif kind == 1:
        mask[top, left] = 1
    elif kind == 2:
        mask[:, left] = 1
    elif kind == 3:
        mask[:] = 1
    return mask


def random_box(rng: np.random.Generator, height: int, width: int) -> CropBox:
    rows, columns = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return CropBox(int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns)


def naive_masks(masks: Masks, box: CropBox, size: tuple[int, int], *, is_flipped: bool) -> Masks:
    return [resized_crop_ids(torch.from_numpy(mask), box, size, is_flipped=is_flipped).numpy().copy() for mask in masks]


def test_boxes_of_a_crop_are_those_of_its_masks() -> None:
    for seed in range(300):
        check_crop(seed)


def check_crop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2).tolist()
    masks = [random_mask(rng, height, width) for _ in range(rng.integers(5))]
    box, is_flipped = random_box(rng, height, width), bool(rng.integers(2))
    size = (int(rng.integers(1, 50)), int(rng.integers(1, 50)))
    if seed % 3 == 0:
        size = (box.height, box.width)
    if seed % 9 == 0:
        box, size = CropBox(0, 0, height, width), (height, width)
    objects = make_objects(masks)
    expected = naive_masks(masks, box, size, is_flipped=is_flipped)
    rows = [number for number, mask in enumerate(expected) if mask.any()]

    cropped = crop_objects(objects, (height, width), box, size, is_flipped=is_flipped)
    assert cropped.rows.tolist() == rows
    assert cropped.boxes.tolist() == [find_box(expected[row]) for row in rows]
    assert cropped.masks is not None
    for row, (x0, y0, x1, y1), mask in zip(rows, cropped.boxes.int().tolist(), cropped.masks, strict=True):
        assert np.array_equal(mask.numpy(), expected[row][y0:y1, x0:x1])

    resized = resize_objects(objects, (height, width), box, size, is_flipped=is_flipped)
    assert resized.masks == tuple(encode_mask(expected[row]) for row in rows)
    assert torch.equal(resized.boxes, cropped.boxes)
    assert resized.ids.tolist() == [100 + row for row in rows]
    assert torch.equal(resized.labels, objects.labels[rows])
    assert torch.equal(resized.is_crowd, objects.is_crowd[rows])
    if size == (box.height, box.width):
        torch.testing.assert_close(resized.areas, torch.tensor([float(expected[row].sum()) for row in rows]))


def test_boxes_without_masks_are_clipped_like_the_masks_of_rectangles() -> None:
    for seed in range(40):
        check_clipping(seed)


def check_clipping(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 40, 2).tolist()
    masks = []
    for _ in range(4):
        part, mask = random_box(rng, height, width), np.zeros((height, width), np.uint8)
        mask[part.top : part.top + part.height, part.left : part.left + part.width] = 1
        masks.append(mask)
    box, is_flipped, factor = random_box(rng, height, width), bool(rng.integers(2)), int(rng.integers(1, 4))
    size = (factor * box.height, factor * box.width)
    with_masks = resize_objects(make_objects(masks), (height, width), box, size, is_flipped=is_flipped)
    without = resize_objects(make_objects(masks, boxes_only=True), (height, width), box, size, is_flipped=is_flipped)
    torch.testing.assert_close(without.boxes, with_masks.boxes)
    torch.testing.assert_close(without.areas, with_masks.areas)
    assert torch.equal(without.ids, with_masks.ids)
    assert without.masks is None


def test_objects_of_which_little_is_visible_are_left_out() -> None:
    mask = np.ones((1, 100), np.uint8)
    for boxes_only in (False, True):
        objects = make_objects([mask], boxes_only=boxes_only)
        for columns, count in ((1, 0), (2, 1)):
            box = CropBox(0, 0, 1, columns)
            cropped = crop_objects(objects, (1, 100), box, (1, columns), min_visible=0.015)
            assert len(cropped.rows) == count
            assert cropped.visible.tolist() == pytest.approx([columns / 100] * count)


def test_boxes_narrower_than_a_pixel_are_left_out() -> None:
    boxes = torch.tensor([[0, 0, 10, 0.9], [0, 0, 10, 1], [4, 4, 4, 8], [0, 0, 0, 0]])
    numbers = torch.arange(4)
    objects = Objects(boxes, numbers, numbers > 9, boxes[:, 2], numbers)
    assert crop_objects(objects, (20, 20), CropBox(0, 0, 20, 20), (20, 20)).rows.tolist() == [1]
    assert crop_objects(objects, (20, 20), CropBox(0, 0, 20, 20), (10, 10)).rows.tolist() == []
    assert crop_objects(objects, (20, 20), CropBox(0, 0, 20, 20), (40, 40)).rows.tolist() == [0, 1]


def test_objects_are_selected_by_index_and_by_condition() -> None:
    masks = [np.full((2, 2), number % 2, np.uint8) for number in range(4)]
    objects = make_objects(masks)
    for rows in (torch.tensor([1, 3]), torch.tensor([False, True, False, True])):
        selected = objects.select(rows)
        assert selected.ids.tolist() == [101, 103]
        assert selected.masks is not None
        assert [decode_mask(counts, 2, 2).tolist() for counts in selected.masks] == [[[1, 1], [1, 1]]] * 2
    assert make_objects(masks, boxes_only=True).select(torch.tensor([2])).masks is None


@pytest.mark.parametrize("has_masks", [False, True])
def test_an_image_without_objects_has_empty_columns(has_masks: bool) -> None:
    objects = Objects.empty(has_masks=has_masks)
    cropped = crop_objects(objects, (8, 8), CropBox(0, 0, 4, 4), (9, 9), is_flipped=True)
    shapes: list[Tensor] = [
        objects.boxes,
        cropped.boxes,
        resize_objects(objects, (8, 8), CropBox(0, 0, 4, 4), (9, 9)).boxes,
    ]
    assert [tuple(boxes.shape) for boxes in shapes] == [(0, 4)] * 3
    assert (objects.masks, cropped.masks) == (((), ()) if has_masks else (None, None))
    assert len(objects) == 0
