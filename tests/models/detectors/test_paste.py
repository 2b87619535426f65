import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]
from torch import Tensor

from c2fmae.core.rle import decode_mask
from c2fmae.models.detectors import CanvasDetections
from c2fmae.models.detectors.paste import encode_pasted, finish_detections

SIZE = (37, 45)


def paste_full_size(probabilities: Tensor, box: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The mask of an image by torch's `grid_sample`, in double precision."""
    x0, y0, x1, y1 = box.double()
    y, x = (torch.arange(length, dtype=torch.float64) + 0.5 for length in size)
    x, y = (2 * (x - x0) / (x1 - x0) - 1, 2 * (y - y0) / (y1 - y0) - 1)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)
    pasted = F.grid_sample(probabilities.double()[None, None], grid[None], padding_mode="border", align_corners=False)
    is_inside = ((grid >= -1) & (grid < 1)).all(dim=2)
    return ((pasted[0, 0] >= 0.5) & is_inside).numpy().astype(np.uint8)


def draw_detections(count: int) -> tuple[Tensor, Tensor]:
    """Masks that are noisy, smooth, full or empty, in boxes inside, over the edges, of one pixel and of none."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    probabilities = F.interpolate(coarse, (28, 28), mode="bilinear")[:, 0]
    probabilities[::4] = torch.rand(probabilities[::4].shape, generator=generator)
    probabilities[1::10], probabilities[2::10] = 0, 1
    limits = torch.tensor([SIZE[1], SIZE[0]])
    corners = (torch.rand(count, 2, 2, generator=generator) * 1.4 - 0.2) * limits
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes[3::10, 2:] = boxes[3::10, :2].floor() + 1  # of one pixel, cut by its box
    boxes[4::20, 2:] = boxes[4::20, :2] + 0.2
    probabilities[5::40] = 1
    boxes[5::20] = torch.tensor([0.0, 0.0, SIZE[1], SIZE[0]])
    return probabilities, boxes


@pytest.mark.numeric
def test_run_lengths_equal_those_of_masks_that_are_pasted_at_full_size() -> None:
    probabilities, boxes = draw_detections(500)
    encoded = [encode_pasted(mask, box, SIZE) for mask, box in zip(probabilities.numpy(), boxes.tolist(), strict=True)]
    full_size = [paste_full_size(mask, box, SIZE) for mask, box in zip(probabilities, boxes, strict=True)]
    areas = [mask.sum() for mask in full_size]
    assert min(areas) == 0
    assert max(areas) == math.prod(SIZE)
    assert areas.count(1) > 5
    assert encoded == [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in full_size]


def test_detections_are_scaled_and_clipped_to_the_image() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [10.0, 15.0, 20.1, 30.2]])
    canvas = CanvasDetections(boxes, torch.tensor([0.9, 0.3]), torch.tensor([2, 0]), torch.ones(2, 4, 4))
    detections = finish_detections(canvas, (3.0, 2.0), (10, 10))
    assert detections.boxes.tolist() == [[0, 0, 10, 10], [5, 5, 10, 10]]
    assert detections.scores.tolist() == pytest.approx([0.9, 0.3])
    assert detections.labels.tolist() == [2, 0]
    assert detections.masks is not None
    masks = [decode_mask(counts, 10, 10) for counts in detections.masks]
    assert masks[0].all()
    assert masks[1].nonzero()[0].min() == 5
    assert masks[1].sum() == 25


def test_detections_without_masks_have_none() -> None:
    empty = CanvasDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), None)
    detections = finish_detections(empty, (1.0, 1.0), (4, 4))
    assert len(detections) == 0
    assert detections.masks is None
