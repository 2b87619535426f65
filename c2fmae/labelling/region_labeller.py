"""The labeller `regions`: objects are regions of similar colour. It needs no weights and no training."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.labels import ClassInfo
from c2fmae.data.geometry import resized_crop_ids, subsample_ids
from c2fmae.data.image_regions import RegionConfig, check_scikit_image, find_region_objects
from c2fmae.data.painting import number_instances
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.objects import make_objects
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS


@LABELLERS.register("regions", options=RegionConfig)
class RegionLabeller:
    """Objects from regions of similar colour (Felzenszwalb, SLIC or watershed), without weights."""

    granularities = frozenset({"instance"})
    classes: tuple[ClassInfo, ...] = ()
    maps_know_labels = False

    def __init__(self, config: RegionConfig, context: LabellerContext) -> None:
        del context  # nothing depends on the data
        check_scikit_image()
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
        regions = torch.from_numpy(find_region_objects(image, self.config))
        box = CropBox(0, 0, *regions.shape)
        full_size = resized_crop_ids(regions, box, (height, width))
        numbered, instances = number_instances(subsample_ids(full_size, stride), ignore=None)
        return LabelResult({"instance": numbered}, make_objects(instances, stride=stride, image_size=(height, width)))
