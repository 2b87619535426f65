import itertools
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.eval.segmentation.windows import padded_logits, slide, window_starts

pytestmark = pytest.mark.numeric

PATCH = 4


class CountingModel:
    """Logits of every second pixel that depend on the pixel and on the window it is in."""

    def __init__(self) -> None:
        self.batch_shapes: list[tuple[int, int, int]] = []

    def __call__(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        assert height % PATCH == width % PATCH == 0
        self.batch_shapes.append((batch, height, width))
        context = images.mean(dim=(2, 3), keepdim=True)
        pooled = F.avg_pool2d(images, 2)
        return torch.cat([pooled + context, (pooled - context).sin(), pooled * context], dim=1)


def draw_image(height: int, width: int) -> Tensor:
    return torch.randn(2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slide_in_a_loop(image: Tensor, window: int, stride: int) -> Tensor:
    """Return the mean of the logits of all windows over each pixel: windows that leave the image are moved inside."""
    height, width = image.shape[1:]
    sums, counts = torch.zeros(6, height, width, dtype=torch.float64), torch.zeros(height, width, dtype=torch.float64)
    grid = [max(ceil((length - window) / stride), 0) + 1 for length in (height, width)]
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        bottom, right = min(row * stride + window, height), min(column * stride + window, width)
        top, left = max(bottom - window, 0), max(right - window, 0)
        part = F.pad(image[None, :, top:bottom, left:right], (0, -(right - left) % PATCH, 0, -(bottom - top) % PATCH))
        size = (part.shape[2], part.shape[3])
        logits = F.interpolate(CountingModel()(part), size, mode="bilinear", align_corners=False)[0]
        sums[:, top:bottom, left:right] += logits[:, : bottom - top, : right - left]
        counts[top:bottom, left:right] += 1
    return sums / counts


def run_slide(model: CountingModel, image: Tensor, window: int, stride: int, batch_size: int = 8) -> Tensor:
    sides = {"window": (window, window), "stride": (stride, stride)}
    return torch.cat(list(slide(model, image, **sides, patch=PATCH, batch_size=batch_size)), dim=1)


# 512, 300×900 and 511×1025 with windows of 512 every 341, at a sixteenth of the size; and others
SIZES = [(32, 32), (19, 57), (31, 65), (32, 65), (64, 64), (33, 40), (5, 3), (100, 20), (32, 53), (75, 74)]


@pytest.mark.parametrize("window", [32, 30])
@pytest.mark.parametrize("size", SIZES)
def test_windows_are_averaged_like_in_a_loop(size: tuple[int, int], window: int) -> None:
    image, stride = draw_image(*size), window * 2 // 3
    expected = slide_in_a_loop(image, window, stride)
    torch.testing.assert_close(run_slide(CountingModel(), image, window, stride), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 300, 511, 512, 513, 853, 854, 900, 1025, 2048])
def test_windows_cover_the_side_and_there_are_no_more_than_needed(length: int) -> None:
    starts = window_starts(length, 512, 341)
    assert len(starts) == max(ceil((length - 512) / 341), 0) + 1
    covered = {pixel for start in starts for pixel in range(start, min(start + 512, length))}
    assert covered == set(range(length))
    assert starts[-1] + 512 == length or (starts == [0] and length < 512)


def test_windows_of_an_image_are_batched_across_rows() -> None:
    model = CountingModel()
    image = draw_image(75, 53)
    logits = run_slide(model, image, 32, 21, batch_size=5)
    assert model.batch_shapes == [(5, 32, 32), (3, 32, 32)]
    torch.testing.assert_close(run_slide(CountingModel(), image, 32, 21, batch_size=1), logits, rtol=1e-12, atol=1e-12)


def test_only_one_row_of_windows_is_in_memory() -> None:
    bands = list(slide(CountingModel(), draw_image(75, 40), window=(32, 32), stride=(21, 21), patch=4, batch_size=8))
    assert [band.shape[1] for band in bands] == [21, 21, 1, 32]


@pytest.mark.parametrize("size", [(32, 32), (9, 30), (32, 7)])
def test_an_image_that_fits_one_window_is_predicted_at_its_size(size: tuple[int, int]) -> None:
    """Its sides are rounded up to the patch with the mean colour, and the logits of the padding are dropped."""
    model, image = CountingModel(), draw_image(*size)
    logits = run_slide(model, image, 32, 21)
    rounded = tuple(-(-side // PATCH) * PATCH for side in size)
    assert model.batch_shapes == [(1, *rounded)]
    padded = torch.zeros(1, 2, *rounded, dtype=torch.float64)
    padded[0, :, : size[0], : size[1]] = image
    whole = F.interpolate(CountingModel()(padded), rounded, mode="bilinear", align_corners=False)
    assert torch.equal(logits, whole[0, :, : size[0], : size[1]])
    assert padded_logits(CountingModel(), image[None], PATCH)[1] == rounded
