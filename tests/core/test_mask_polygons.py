"""Polygons of masks enclose exactly their pixels, by a count of edges and as pycocotools rasterises them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from c2fmae.core.mask_polygons import join_polygons, trace_mask
from c2fmae.core.rle import decode_mask


def draw_mask(seed: int) -> np.ndarray:
    """Return random pixels, blocks or an ellipse with a hole."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2).tolist()
    if seed % 3 == 0:
        mask = rng.random((height, width)) < rng.random()
    elif seed % 3 == 1:
        mask = np.kron(rng.integers(0, 2, (-(-height // 3), -(-width // 3))), np.ones((3, 3)))[:height, :width] > 0
    else:
        rows, columns = np.mgrid[:height, :width]
        distance = ((rows - height / 2) / height) ** 2 + ((columns - width / 2) / width) ** 2
        mask = (distance < 0.2) & (distance > 0.04)
    mask[rng.integers(height), rng.integers(width)] = True
    return mask.astype(np.uint8)


def enclosed_pixels(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels whose centre a polygon encloses: an odd number of its edges is on the left."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(polygon.tolist(), np.roll(polygon, -1, axis=0).tolist(), strict=True):
        if y0 != y1:
            crosses = (y > min(y0, y1)) & (y < max(y0, y1))
            inside ^= crosses & (x0 + (x1 - x0) * (y - y0) / (y1 - y0) < x)
    return inside.astype(np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_polygons_enclose_the_pixels_of_a_mask(seed: int) -> None:
    mask = draw_mask(seed)
    height, width = mask.shape
    polygons = trace_mask(mask)
    parts = sum(enclosed_pixels(polygon, height, width).astype(int) for polygon in polygons)
    assert np.array_equal(parts % 2, mask)
    for polygon in polygons:
        steps = np.abs(np.roll(polygon, -1, axis=0) - polygon)
        assert ((steps > 0).sum(axis=1) == 1).all()  # horizontal and vertical edges in turn
        assert (np.roll(steps > 0, -1, axis=0) != (steps > 0)).all()
    assert np.array_equal(enclosed_pixels(join_polygons(polygons), height, width), mask)


@pytest.mark.parametrize("seed", range(30))
def test_pycocotools_rasterises_a_joined_polygon_to_the_mask(seed: int) -> None:
    mask = draw_mask(seed)
    height, width = mask.shape
    polygon = join_polygons(trace_mask(mask)).ravel().astype(float).tolist()
    counts = coco_mask.frPyObjects([polygon], height, width)[0]["counts"]
    assert np.array_equal(decode_mask(counts, height, width), mask)
