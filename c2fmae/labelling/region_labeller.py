"""The labeller `regions`: objects are regions of similar colour. It needs no weights and no training."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config, Fraction, PositiveInt, UnitInterval
from c2fmae.core.crop_box import CropBox
from c2fmae.core.labels import ClassInfo
from c2fmae.data.crops.resize import resize_to_sides
from c2fmae.data.geometry import resized_crop_ids, subsample_ids
from c2fmae.data.image_regions import (
    find_felzenszwalb_regions,
    find_slic_regions,
    find_watershed_regions,
    select_objects,
)
from c2fmae.data.painting import number_instances
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.objects import make_objects
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS


class RegionConfig(Config):
    """Settings of `regions`."""

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


@LABELLERS.register("regions", options=RegionConfig)
class RegionLabeller:
    """Objects from regions of similar colour (Felzenszwalb, SLIC or watershed), without weights."""

    granularities = frozenset({"instance"})
    classes: tuple[ClassInfo, ...] = ()
    maps_know_labels = False

    def __init__(self, config: RegionConfig, context: LabellerContext) -> None:
        del context  # nothing depends on the data
        self.config = config

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value: images are labelled one by one."""
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the instance maps of images."""
        return [self._label_image(each.image, stride) for each in inputs]

    def describe(self) -> Mapping[str, Any]:
        """Return the settings and the version of scikit-image."""
        from importlib.metadata import version

        return {"labeller": "regions", **self.config.model_dump(mode="json"), "scikit-image": version("scikit-image")}

    def _label_image(self, image: UInt8[Tensor, "3 height width"], stride: int) -> LabelResult:
        height, width = image.shape[1:]
        regions = torch.from_numpy(self._find_objects(image))
        box = CropBox(0, 0, *regions.shape)
        full_size = resized_crop_ids(regions, box, (height, width))
        numbered, instances = number_instances(subsample_ids(full_size, stride), ignore=None)
        return LabelResult({"instance": numbered}, make_objects(instances, stride=stride, image_size=(height, width)))

    def _find_objects(self, image: UInt8[Tensor, "3 height width"]) -> Int32[np.ndarray, "rows columns"]:
        """Return the map of the objects of an image at the size at which it is segmented."""
        config = self.config
        pixels = _shrink(image, config.short_side).permute(1, 2, 0).contiguous().numpy()
        if config.algorithm == "felzenszwalb":
            min_size = max(round(config.min_size * pixels.shape[0] * pixels.shape[1]), 1)
            regions = find_felzenszwalb_regions(pixels, scale=config.scale, sigma=config.sigma, min_size=min_size)
        elif config.algorithm == "slic":
            regions = find_slic_regions(pixels, num_regions=config.num_regions, compactness=config.compactness)
        else:
            regions = find_watershed_regions(pixels, num_markers=config.num_regions)
        return select_objects(
            regions, max_border=config.max_border, max_area=config.max_area, max_objects=config.max_objects
        )


def _shrink(image: UInt8[Tensor, "3 height width"], short_side: int) -> UInt8[Tensor, "3 rows columns"]:
    """Return an image of which the shorter side has at most `short_side` pixels."""
    if min(image.shape[1:]) <= short_side:
        return image
    return resize_to_sides(image, short_side, max(image.shape[1:]))[0]
