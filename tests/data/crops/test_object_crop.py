"""The objects of a resized crop equal what a naive rule finds on masks of full size."""

import numpy as np
import pytest
import torch

from c2fmae.core.crop_box import CropBox
from c2fmae.core.objects import Objects
from c2fmae.data.crops.object_crop import crop_sample
from tests.data.crops.object_scenes import (
    draw_blobs,
    make_objects,
    make_scene,
    paint_masks,
    resize_naively,
    tight_corners,
)


def draw_box(rng: np.random.Generator, height: int, width: int) -> CropBox:
    rows, columns = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return CropBox(int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns)


def test_boxes_and_masks_of_a_crop_are_those_of_cropped_masks() -> None:
    rng = np.random.default_rng(0)
    num_cut = 0
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(12, 50, 2))
        masks = draw_blobs(rng, height, width, 5)
        box = draw_box(rng, height, width)
        size = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
        is_flipped = bool(rng.integers(2))
        sample = crop_sample(
            make_scene(height, width, make_objects(masks)), box, size, is_flipped=is_flipped, min_visible=0
        )
        assert sample.image.shape == (3, *size)
        naive = [resize_naively(mask, box, size, is_flipped=is_flipped) for mask in masks]
        painted = paint_masks(sample)
        for row, label in enumerate(sample.labels.tolist()):
            assert np.array_equal(painted[row], naive[label])
            x0, y0, x1, y1 = tight_corners(masks[label])
            is_whole = box.left <= x0 and box.top <= y0 and x1 <= box.left + box.width and y1 <= box.top + box.height
            num_cut += not is_whole
            expected: list[float] = list(tight_corners(naive[label]))
            if is_whole:  # an object that is not cut keeps its box, which may end between two pixels of the crop
                across, down = size[1] / box.width, size[0] / box.height
                start, end = (x0 - box.left) * across, (x1 - box.left) * across
                start, end = (size[1] - end, size[1] - start) if is_flipped else (start, end)
                scaled = [start, (y0 - box.top) * down, end, (y1 - box.top) * down]
                if min(across, down) >= 1:
                    assert np.abs(np.subtract(scaled, expected)).max() < 0.51 * max(across, down)
                expected = scaled
            assert sample.boxes[row].tolist() == pytest.approx(expected, abs=1e-4)
        missing = set(range(5)) - set(sample.labels.tolist())
        for label in missing:
            if naive[label].any():  # a box that is scaled to less than a pixel
                x0, y0, x1, y1 = tight_corners(masks[label])
                assert min((x1 - x0) * size[1] / box.width, (y1 - y0) * size[0] / box.height) < 1
    assert num_cut > 60


def test_boxes_without_masks_are_clipped() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        masks = draw_blobs(rng, 40, 50, 5)
        objects = make_objects(masks, boxes_only=True)
        box, size, is_flipped = draw_box(rng, 40, 50), (int(rng.integers(1, 60)), 33), bool(rng.integers(2))
        sample = crop_sample(make_scene(40, 50, objects), box, size, is_flipped=is_flipped, min_visible=0.2437)
        assert sample.masks is None
        found = dict(zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True))
        for label, (x0, y0, x1, y1) in enumerate(objects.boxes.tolist()):
            left, right = max(x0, box.left), min(x1, box.left + box.width)
            top, bottom = max(y0, box.top), min(y1, box.top + box.height)
            sides = max(right - left, 0) * size[1] / box.width, max(bottom - top, 0) * size[0] / box.height
            is_visible = min(sides) > 0 and (right - left) * (bottom - top) >= 0.2437 * (x1 - x0) * (y1 - y0)
            assert (label in found) == (is_visible and min(sides) >= 1)
            if label in found:
                start = (left - box.left) * size[1] / box.width
                start = size[1] - start - sides[0] if is_flipped else start
                down = (top - box.top) * size[0] / box.height
                assert found[label] == pytest.approx([start, down, start + sides[0], down + sides[1]], abs=1e-4)


@pytest.mark.parametrize("boxes_only", [False, True])
def test_crowds_are_left_out_and_empty_samples_stay(boxes_only: bool) -> None:
    masks = draw_blobs(np.random.default_rng(2), 20, 20, 3)
    scene = make_scene(20, 20, make_objects(masks, crowds=[True, False, True], boxes_only=boxes_only))
    sample = crop_sample(scene, CropBox(0, 0, 20, 20), (20, 20), is_flipped=False, min_visible=0)
    assert sample.labels.tolist() == [1]
    crowds = make_scene(20, 20, make_objects(masks, crowds=[True] * 3, boxes_only=boxes_only))
    empty = make_scene(20, 20, Objects.empty(has_masks=not boxes_only))
    for scene in (crowds, empty):
        sample = crop_sample(scene, CropBox(0, 0, 20, 20), (30, 30), is_flipped=True, min_visible=0.01)
        assert sample.boxes.shape == (0, 4)
        assert sample.labels.shape == (0,)
        assert (sample.masks is None) == boxes_only
        assert sample.masks is None or len(sample.masks) == 0


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("boxes_only", [False, True])
def test_objects_of_which_too_little_is_left_are_left_out(boxes_only: bool) -> None:
    masks = [
        rectangle(0, 0, 22, 40),  # 2 of 22 columns are in the crop
        rectangle(0, 0, 30, 40),  # 10 of 30
        rectangle(2, 2, 18, 18),  # none
        rectangle(25, 5, 26, 30),  # one column, which becomes half a pixel
        rectangle(30, 5, 40, 6),  # one row, the same
        rectangle(30, 5, 40, 10),
    ]
    scene = make_scene(40, 40, make_objects(masks, boxes_only=boxes_only))
    for min_visible, expected in ((0.05, [0, 1, 5]), (0.1, [1, 5]), (0.5, [5]), (1, [5])):
        sample = crop_sample(scene, CropBox(0, 20, 40, 20), (20, 10), is_flipped=False, min_visible=min_visible)
        assert sample.labels.tolist() == expected


def test_a_box_without_area_is_left_out() -> None:
    objects = make_objects([rectangle(3, 3, 9, 9), rectangle(3, 3, 9, 9)])
    objects.boxes[0] = torch.tensor([3.0, 5.0, 9.0, 5.0])
    sample = crop_sample(
        make_scene(40, 40, objects), CropBox(0, 0, 40, 40), (40, 40), is_flipped=False, min_visible=0.01
    )
    assert sample.labels.tolist() == [1]
    assert sample.masks is not None
    assert len(sample.masks) == 1


@pytest.mark.parametrize("count", [33, 300])
def test_every_object_of_a_crowded_image_survives(count: int) -> None:
    places = [(2 * (number % 20), 2 * (number // 20)) for number in range(count)]
    scene = make_scene(40, 40, make_objects([rectangle(x, y, x + 2, y + 2) for x, y in places]))
    sample = crop_sample(scene, CropBox(0, 0, 40, 40), (80, 80), is_flipped=False, min_visible=0.01)
    assert sample.labels.tolist() == list(range(count))
    assert sample.boxes.tolist() == [[2 * x, 2 * y, 2 * x + 4, 2 * y + 4] for x, y in places]


def test_a_scene_without_objects_is_an_error() -> None:
    scene = make_scene(8, 8, make_objects([]))
    with pytest.raises(ValueError, match="key: expected a scene with objects"):
        crop_sample(type(scene)("key", scene.maps), CropBox(0, 0, 8, 8), (8, 8), is_flipped=False, min_visible=0)
