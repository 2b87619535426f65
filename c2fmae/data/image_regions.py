"""Regions of similar colour: classical segmentations of an image by scikit-image, which is imported when one runs."""

from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from c2fmae.core.errors import UserError


def find_felzenszwalb_regions(
    image: UInt8[np.ndarray, "height width channels"], *, scale: float, sigma: float, min_size: int
) -> Int32[np.ndarray, "height width"]:
    """Return the regions of Felzenszwalb and Huttenlocher's graph segmentation, numbered from 1.

    A higher `scale` gives larger regions; the image is smoothed with `sigma`. Regions of fewer than `min_size` pixels
    are merged into neighbours.
    """
    regions = _import_segmentation().felzenszwalb(image, scale=scale, sigma=sigma, min_size=min_size)
    return regions.astype(np.int32) + 1  # type: ignore[no-any-return]


def find_slic_regions(
    image: UInt8[np.ndarray, "height width channels"], *, num_regions: int, compactness: float
) -> Int32[np.ndarray, "height width"]:
    """Return about `num_regions` superpixels (SLIC), numbered from 1; `compactness` weighs position against colour."""
    regions = _import_segmentation().slic(image, n_segments=num_regions, compactness=compactness, start_label=1)
    return regions.astype(np.int32)  # type: ignore[no-any-return]


def find_watershed_regions(
    image: UInt8[np.ndarray, "height width channels"], *, num_markers: int
) -> Int32[np.ndarray, "height width"]:
    """Return the watershed regions of the image's gradient from about `num_markers` markers, numbered from 1."""
    segmentation = _import_segmentation()
    import skimage.color
    import skimage.filters

    gradient = skimage.filters.sobel(skimage.color.rgb2gray(image))  # type: ignore[no-untyped-call]
    regions = segmentation.watershed(gradient, markers=num_markers)
    return regions.astype(np.int32)  # type: ignore[no-any-return]


def select_objects(
    regions: Int32[np.ndarray, "height width"], *, max_border: float, max_area: float, max_objects: int
) -> Int32[np.ndarray, "height width"]:
    """Return the map of the `max_objects` largest regions, in which all others are 0.

    Regions with more than `max_border` of the border pixels or more than `max_area` of all pixels are background. Equal
    areas are ordered by number.
    """
    areas = np.bincount(regions.reshape(-1))
    border = np.concatenate([regions[0], regions[-1], regions[1:-1, 0], regions[1:-1, -1]])
    shares = np.bincount(border, minlength=len(areas)) / len(border)
    is_object = (areas > 0) & (areas <= max_area * regions.size) & (shares <= max_border)
    is_object[0] = False
    order = np.argsort(-np.where(is_object, areas, 0), kind="stable")[:max_objects]
    table = np.zeros(len(areas), np.int32)
    table[order] = order * is_object[order]
    objects: Int32[np.ndarray, "height width"] = table[regions]
    return objects


def _import_segmentation() -> Any:
    try:
        import skimage.segmentation
    except ImportError as error:
        raise UserError('regions: needs the package scikit-image. Install it: pip install "c2fmae[regions]"') from error
    return skimage.segmentation
