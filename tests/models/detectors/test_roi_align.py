from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as roi_align_kernel

from c2fmae.models.detectors.roi_align import roi_align
from tests.models.detectors.noise_detectors import draw_boxes
from tests.models.tiny_models import draw_normal


def draw_rois(count: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Boxes inside, at and over the edges of images of 4 times a size, some without an area, and their images."""
    boxes = draw_boxes(count, (4 * size[0], 4 * size[1]), seed=seed)
    limits = torch.tensor([4.0 * size[1], 4.0 * size[0]])
    boxes[::5, :2] = 0
    boxes[1::5, 2:] = limits
    boxes[2::10, :2] -= limits
    boxes[7::10, 2:] += limits
    boxes[3::10, 2] = boxes[3::10, 0]
    boxes[8::10] = torch.cat([limits, limits + 8])
    return boxes, torch.arange(count) * 3 // max(count, 1)


@pytest.mark.numeric
@pytest.mark.parametrize("seed", range(30))
def test_values_and_gradients_equal_those_of_torchvisions_kernel(seed: int) -> None:
    size = (5 + seed, 31 - seed)
    boxes, images = draw_rois(seed if seed < 3 else 20, size, seed)
    options: dict[str, Any] = {"sampling_ratio": (0, 2)[seed % 2], "aligned": seed % 3 != 0}
    features = draw_normal(3, 2, *size, seed=seed).requires_grad_()
    rois = torch.cat([images[:, None], boxes], dim=1)
    pooled = roi_align(features, boxes, images, stride=4, size=(7, 3)[seed % 2], **options)
    expected = roi_align_kernel(features, rois, (7, 3)[seed % 2], 1 / 4, **options)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-4)
    weights = draw_normal(*pooled.shape, seed=seed)
    gradients = [torch.autograd.grad((x * weights).sum(), features)[0] for x in (pooled, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-4)
