from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as roi_align_kernel
from torchvision.ops.poolers import LevelMapper

from c2fmae.models.detectors import roi_align as roi_align_module
from c2fmae.models.detectors.roi_align import choose_levels, pool_rois, roi_align
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
def test_values_and_gradients_equal_those_of_torchvisions_kernel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_align_module, "_CELLS_PER_SAMPLE", 10**9)  # never the kernel
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


def test_the_kernel_is_used_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Mock(wraps=roi_align_kernel)
    monkeypatch.setattr(roi_align_module, "roi_align_kernel", kernel)

    def pool(side: int, box: float, *, requires_grad: bool = True) -> bool:
        kernel.reset_mock()
        features = torch.zeros(1, 1, side, side, requires_grad=requires_grad)
        boxes = torch.tensor([[0.0, 0, box, box]])
        roi_align(features, boxes, torch.zeros(1, dtype=torch.int64), stride=1, size=7)
        return bool(kernel.called)

    assert not pool(24, 3)
    assert not pool(64, 20)
    assert pool(64, 3)
    assert pool(24, 3, requires_grad=False)
    with torch.no_grad():
        assert pool(24, 3)


POOL: dict[str, Any] = {"size": 3, "canonical_size": 56, "sampling_ratio": 0, "aligned": True}


def test_padding_and_earlier_batches_do_not_change_pooled_maps() -> None:
    strides, canvas, image = (4, 8, 16), 128, (86, 128)  # of 3:2, of which torchvision doubles the strides
    maps = [draw_normal(1, 2, canvas // stride, canvas // stride, seed=stride) for stride in strides]
    cropped = [x[:, :, : -(-image[0] // stride)] for x, stride in zip(maps, strides, strict=True)]
    boxes, images = draw_boxes(30, (image[0] - 8, image[1] - 8), seed=0), torch.zeros(30, dtype=torch.int64)
    assert len(choose_levels(boxes, strides, canonical_size=56).unique()) == 3
    alone = pool_rois(cropped, strides, boxes, images, **POOL)
    pool_rois([x[:, :, :4, :3] for x in maps], strides, boxes, images, **POOL)
    padded = pool_rois(maps, strides, boxes, images, **POOL)
    inside = boxes[:, 3] <= image[0] - 16
    torch.testing.assert_close(padded[inside], alone[inside], rtol=0, atol=1e-6)


def test_boxes_are_pooled_in_their_order_from_the_maps_of_their_sizes_and_images() -> None:
    strides = (4, 8)
    maps = [torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 16, 16) + 10 * level for level in range(2)]
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 8, 8], [8, 8, 16, 16], [0, 0, 50, 30], [0, 0, 8, 9]])
    images = torch.tensor([0, 0, 1, 2, 2])
    assert choose_levels(boxes, strides, canonical_size=56).tolist() == [1, 0, 0, 1, 0]
    pooled = pool_rois([x.clone().requires_grad_() for x in maps], strides, boxes, images, **POOL)
    assert pooled.mean(dim=(1, 2, 3)).tolist() == pytest.approx([10, 0, 1, 12, 2])


def test_levels_equal_torchvisions() -> None:
    strides = (4, 8, 16, 32)
    boxes = draw_boxes(200, (1000, 1000), seed=0)
    boxes[:40, 2:] = boxes[:40, :2] + torch.tensor([112.0, 224, 448, 223.99]).repeat(10)[:, None]
    mapper = LevelMapper(2, 5)
    assert torch.equal(choose_levels(boxes, strides, canonical_size=224), mapper([boxes]))


def test_levels_of_other_strides_are_the_nearest() -> None:
    """A region of the canonical size is pooled from the stride nearest to 16; with patches of 14 pixels, from 14."""
    sides = torch.tensor([56.0, 112, 223, 224, 447, 448])
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], dim=1)
    levels = choose_levels(boxes, (7, 14, 28, 56), canonical_size=224)
    assert [(7, 14, 28, 56)[level] for level in levels] == [7, 7, 7, 14, 14, 28]


def test_an_empty_list_of_boxes_has_gradients() -> None:
    maps = [torch.zeros(2, 3, side, side, requires_grad=True) for side in (8, 4)]
    pooled = pool_rois(maps, (4, 8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), **POOL)
    assert pooled.shape == (0, 3, 3, 3)
    pooled.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in maps)
