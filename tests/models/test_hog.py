"""Histograms of oriented gradients, against a loop over pixels and against scikit-image."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models import compute_hog
from c2fmae.models.hog import HogTarget
from tests.models.tiny_models import draw_normal

pytestmark = pytest.mark.numeric


def count_votes(image: Tensor, *, bins: int, cell: int, window: int | None) -> Tensor:
    """Return the histograms of an image of one channel, by loops over its pixels."""
    height, width = image.shape
    histograms = torch.zeros(bins, height // cell, width // cell, dtype=torch.float64)
    weights = {(0, 0): 1.0}
    if window is not None:
        weights = {
            (y, x): math.exp(-0.5 * ((y - (window - 1) / 2) ** 2 + (x - (window - 1) / 2) ** 2) / (window / 2) ** 2)
            for y in range(window)
            for x in range(window)
        }

    def pixel(y: int, x: int) -> float:
        y, x = (abs(y) if y < height else 2 * height - 2 - y), (abs(x) if x < width else 2 * width - 2 - x)
        return float(image[y, x])

    for y in range(height):
        for x in range(width):
            along_row = sum((2 - abs(d)) * (pixel(y + d, x - 1) - pixel(y + d, x + 1)) for d in (-1, 0, 1))
            along_column = sum((2 - abs(d)) * (pixel(y - 1, x + d) - pixel(y + 1, x + d)) for d in (-1, 0, 1))
            number = math.floor(math.atan2(along_row, along_column) / math.pi * bins) % bins
            weight = weights[y % (window or 1), x % (window or 1)] * math.hypot(along_row, along_column)
            histograms[number, y // cell, x // cell] += weight
    return F.normalize(histograms, dim=0)


@pytest.mark.parametrize("window", [None, 8, 16])
def test_histograms_equal_a_loop_over_pixels(window: int | None) -> None:
    images = draw_normal(1, 2, 24, 16).double()
    found = compute_hog(images, bins=9, cell=4, window=window)
    assert found.shape == (1, 2, 9, 6, 4)
    for channel in range(2):
        expected = count_votes(images[0, channel], bins=9, cell=4, window=window)
        torch.testing.assert_close(found[0, channel], expected, rtol=1e-12, atol=1e-12)


def test_histograms_equal_scikit_image_on_a_smooth_image() -> None:
    """There, its central differences have the directions of Sobel's; it measures the angle from the other axis."""
    feature = pytest.importorskip("skimage.feature", reason="scikit-image is not installed")
    y, x = np.mgrid[:64, :64] / 64
    image = np.sin(2.3 * y + 0.4) + 1.7 * np.cos(1.9 * x - 0.6 * y)
    options = {"orientations": 9, "pixels_per_cell": (8, 8), "cells_per_block": (1, 1), "block_norm": "L2"}
    theirs = torch.from_numpy(feature.hog(image, **options, feature_vector=False)[:, :, 0, 0])
    ours = compute_hog(torch.from_numpy(image.T.copy())[None, None], bins=9, cell=8)[0, 0].permute(2, 1, 0)
    similarity = torch.cosine_similarity(ours, theirs, dim=2)[1:-1, 1:-1]  # without borders, where it has no gradient
    assert float(similarity.min()) > 0.99


def test_histograms_do_not_depend_on_the_contrast_of_a_channel() -> None:
    images = draw_normal(2, 3, 16, 16).double()
    scale = torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(
        compute_hog(images * scale + 3, bins=9, cell=8), compute_hog(images, bins=9, cell=8), rtol=1e-9, atol=1e-9
    )
    assert not compute_hog(torch.ones(1, 1, 16, 16), bins=9, cell=8).any()


def test_values_of_a_patch_are_ordered_by_channel_bin_row_and_column() -> None:
    images = draw_normal(2, 3, 32, 48)
    target = HogTarget(channels=3, patch=16)
    histograms = compute_hog(images, bins=9, cell=8, window=16)
    assert target.size == 3 * 9 * 4
    values = target.true_values(images).unflatten(1, (2, 3))
    for row, column in ((0, 0), (1, 2)):
        expected = histograms[:, :, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
        torch.testing.assert_close(values[:, row, column], expected)
    error = target.error(torch.zeros(2, 6, target.size), images)
    torch.testing.assert_close(error, target.true_values(images).square().mean(dim=2))
    assert target.count_valid(images).tolist() == [[1] * 6] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_errors_are_at_least_float32_under_autocast(dtype: torch.dtype) -> None:
    target, images = HogTarget(channels=3, patch=16), draw_normal(2, 3, 32, 48)
    predictions = draw_normal(2, 6, target.size).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected = target.error(predictions.to(wide), images)
    with torch.autocast("cpu", torch.bfloat16):
        found = target.error(predictions, images)
    assert found.dtype == wide
    assert torch.equal(found, expected)


def test_every_prediction_has_a_gradient_from_its_own_patch() -> None:
    target, images = HogTarget(channels=3, patch=16), draw_normal(2, 3, 32, 48)
    predictions = draw_normal(2, 6, target.size).requires_grad_()
    target.error(predictions, images)[0, 2].backward()
    assert predictions.grad is not None
    assert (predictions.grad != 0).any(dim=2).nonzero().tolist() == [[0, 2]]
    assert (predictions.grad[0, 2] != 0).all()


def test_bins_and_windows_are_at_least_one() -> None:
    for options in ({"bins": 0}, {"window": 0}):
        with pytest.raises(UserError, match="bins, window: expected at least 1, got "):
            HogTarget(channels=3, patch=16, **options)


def test_cells_must_divide_patches() -> None:
    with pytest.raises(UserError, match="cell: expected a divisor of the patch size 14, got 8. Change it"):
        HogTarget(channels=3, patch=14)
