"""Regions of similar colour, and which of them are objects."""

import builtins
from typing import Any

import numpy as np
import pytest

from c2fmae.core.errors import UserError
from c2fmae.data.image_regions import (
    find_felzenszwalb_regions,
    find_slic_regions,
    find_watershed_regions,
    select_objects,
)


def draw_blocks() -> np.ndarray:
    """Return an image of four flat quarters."""
    image = np.zeros((40, 60, 3), np.uint8)
    for index, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 40)]):
        image[20 * (index // 2) :, 30 * (index % 2) :] = colour
    return image


def test_felzenszwalb_finds_flat_regions() -> None:
    regions = find_felzenszwalb_regions(draw_blocks(), scale=300, sigma=0, min_size=20)
    assert len(np.unique(regions)) == 4
    assert all(len(np.unique(quarter)) == 1 for half in np.split(regions, 2) for quarter in np.split(half, 2, axis=1))


def test_regions_are_numbered_from_1() -> None:
    image = draw_blocks()
    for regions in (
        find_felzenszwalb_regions(image, scale=10, sigma=0.5, min_size=5),
        find_slic_regions(image, num_regions=12, compactness=10),
        find_watershed_regions(image, num_markers=12),
    ):
        assert regions.shape == (40, 60)
        assert regions.min() == 1
        assert len(np.unique(regions)) >= 4


def test_the_largest_regions_that_are_not_background_are_objects() -> None:
    regions = np.full((10, 10), 1, np.int32)  # 60 pixels, of which 36 are the border
    regions[2:8, 2:8] = 2  # 36 pixels
    regions[4:6, 3:5] = 3  # 4 pixels
    regions[0, :4] = 4  # 4 of 36 border pixels
    none, limits = {"max_border": 1.0, "max_area": 1.0}, {"max_border": 0.5, "max_area": 0.6}

    def ids(**options: Any) -> list[int]:
        return [int(id_) for id_ in np.unique(select_objects(regions, **{"max_objects": 10, **options}))]

    assert ids(**none) == [1, 2, 3, 4]
    assert ids(**limits) == [0, 2, 3, 4]
    assert ids(max_border=0.1, max_area=0.6) == [0, 2, 3]
    assert ids(max_border=0.5, max_area=0.3) == [0, 3, 4]
    assert ids(**limits, max_objects=1) == [0, 2]
    assert ids(**limits, max_objects=2) == [0, 2, 3]  # of equal areas, the lower number


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def fail(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("skimage"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UserError, match=r'regions: needs the package scikit-image. Install it: pip install "c2f'):
        find_felzenszwalb_regions(draw_blocks(), scale=1, sigma=1, min_size=1)
