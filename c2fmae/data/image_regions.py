"""Regions of similar colour: classical segmentations of an image by scikit-image, which is imported when one runs."""

from importlib.util import find_spec
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int32, UInt8
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config, Fraction, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.data.crops.resize import resize_to_sides


class RegionConfig(Config):
    """Settings of objects from regions, which are those of the labeller `regions`."""

    algorithm: Literal["felzenszwalb", "slic", "watershed"] = "felzenszwalb"
    short_side: PositiveInt = 256
    """Images with a longer shorter side, in pixels, are segmented at this size."""
    scale: Annotated[float, Field(gt=0)] = 300.0
    """Of Felzenszwalb: a higher one gives larger regions."""
    sigma: Annotated[float, Field(ge=0)] = 0.8
    """Of Felzenszwalb: smoothing, in pixels."""
    min_size: UnitInterval = 0.003
    """Of Felzenszwalb: regions of a smaller fraction of the image are merged into neighbours."""
    num_regions: PositiveInt = 60
    """Of SLIC and the watershed, approximately."""
    compactness: Annotated[float, Field(gt=0)] = 10.0
    """Of SLIC: weight of position against colour."""
    max_border: Fraction = 0.17
    """Regions with a larger fraction of the border pixels are background."""
    max_area: Fraction = 0.6
    """Regions with a larger fraction of the image are background."""
    max_objects: PositiveInt = 31
    """Only the largest regions become objects."""


def find_region_objects(
    image: UInt8[Tensor, "3 height width"], config: RegionConfig
) -> Int32[np.ndarray, "rows columns"]:
    """Return the map of the objects of an image, at the size at which it is segmented; 0 is background."""
    return select_objects(
        find_regions(image, config),
        max_border=config.max_border,
        max_area=config.max_area,
        max_objects=config.max_objects,
    )


def find_regions(image: UInt8[Tensor, "3 height width"], config: RegionConfig) -> Int32[np.ndarray, "rows columns"]:
    """Return all regions of an image, numbered from 1, at the size at which it is segmented."""
    pixels = _shrink(image, config.short_side).permute(1, 2, 0).contiguous().numpy()
    if config.algorithm == "felzenszwalb":
        min_size = max(round(config.min_size * pixels.shape[0] * pixels.shape[1]), 1)
        return find_felzenszwalb_regions(pixels, scale=config.scale, sigma=config.sigma, min_size=min_size)
    if config.algorithm == "slic":
        return find_slic_regions(pixels, num_regions=config.num_regions, compactness=config.compactness)
    return find_watershed_regions(pixels, num_markers=config.num_regions)


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


def has_scikit_image() -> bool:
    """Return whether regions can be found: scikit-image is an optional dependency."""
    return find_spec("skimage") is not None


def check_scikit_image() -> None:
    """Raise a `UserError` if scikit-image cannot be imported."""
    _import_segmentation()


def _shrink(image: UInt8[Tensor, "3 height width"], short_side: int) -> UInt8[Tensor, "3 rows columns"]:
    """Return an image of which the shorter side has at most `short_side` pixels."""
    if min(image.shape[1:]) <= short_side:
        return image
    return resize_to_sides(image, short_side, max(image.shape[1:]))[0]


def _import_segmentation() -> Any:
    try:
        import skimage.segmentation
    except ImportError as error:
        raise UserError('regions: needs the package scikit-image. Install it: pip install "c2fmae[regions]"') from error
    return skimage.segmentation
