"""The labeller `cuts`: objects are groups of patches with similar features of a backbone. It needs no labels."""

from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import PositiveInt, UnitInterval
from c2fmae.core.crop_box import CropBox
from c2fmae.core.labels import ClassInfo
from c2fmae.data.geometry import resized_crop_ids, stored_pixels
from c2fmae.data.image_regions import RegionConfig, check_scikit_image, find_regions
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.normalised_cuts import PatchObject, find_objects
from c2fmae.labelling.objects import ObjectRules, finish_objects
from c2fmae.labelling.patch_features import PatchFeatureConfig, open_patch_features
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS
from c2fmae.models.segmenters.upsampling import upsample_at


class CutConfig(PatchFeatureConfig):
    """Settings of `cuts`."""

    min_cosine: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Patches whose features have a higher cosine are similar."""
    max_objects: PositiveInt = 3
    """Largest number of objects, and of cuts."""
    min_patches: UnitInterval = 0.01
    """The search ends at an object of a smaller fraction of the patches."""
    snap: bool = False
    """Replace each object by the regions of similar colour of which it covers over half; needs scikit-image."""
    regions: RegionConfig = RegionConfig()
    """How these regions are found."""
    rules: ObjectRules = ObjectRules()
    """Which masks become objects."""


@LABELLERS.register("cuts", options=CutConfig)
class CutLabeller:
    """Objects by normalised cuts of the patch features of any backbone (MaskCut)."""

    granularities = frozenset({"instance"})
    classes: tuple[ClassInfo, ...] = ()
    maps_know_labels = False

    def __init__(self, config: CutConfig, context: LabellerContext) -> None:
        if config.snap:
            check_scikit_image()
        self._config, self._features = config, open_patch_features(config, context)

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value: images are labelled one by one."""
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the instance maps of images. The score of an object is 1 minus the value of its cut."""
        return [self._label_image(each.image, stride) for each in inputs]

    def describe(self) -> Mapping[str, Any]:
        """Return a digest of the weights, and the settings."""
        names = {"min_cosine", "max_objects", "min_patches", "snap", "rules"} | (
            {"regions"} if self._config.snap else set()
        )
        settings = self._config.model_dump(mode="json", include=names)
        versions = {"scikit-image": version("scikit-image")} if self._config.snap else {}
        return {"labeller": "cuts", **self._features.describe(), **settings, **versions}

    def _label_image(self, image: UInt8[Tensor, "3 height width"], stride: int) -> LabelResult:
        size, config = (image.shape[1], image.shape[2]), self._config
        objects = find_objects(
            self._features.compute(image),
            min_cosine=config.min_cosine,
            max_objects=config.max_objects,
            min_area=config.min_patches,
        )
        rows, columns = (torch.from_numpy(stored_pixels(length, stride)) for length in size)
        regions = find_regions(image, config.regions) if config.snap and objects else None
        masks = torch.zeros(len(objects), len(rows), len(columns), dtype=torch.bool)
        for mask, each in zip(masks, objects, strict=True):
            if regions is None:
                mask[:] = sample_levels(each, size, (rows, columns)) > 0
            else:
                mask[:] = resized_crop_ids(snap_to_regions(each, regions), CropBox(0, 0, *regions.shape), size)[rows][
                    :, columns
                ]
        nothing = [None] * len(objects)
        ids, labelled = finish_objects(
            masks,
            torch.tensor([min(max(1 - each.value, 0.0), 1.0) for each in objects]),
            nothing,
            nothing,
            nothing,
            stride=stride,
            image_size=size,
            rules=config.rules,
        )
        return LabelResult({"instance": ids}, labelled)


def snap_to_regions(
    patch_object: PatchObject, regions: Int32[np.ndarray, "height width"]
) -> Bool[Tensor, "height width"]:
    """Return the regions of which an object covers over half."""
    height, width = regions.shape
    levels = sample_levels(patch_object, (height, width), (torch.arange(height), torch.arange(width)))
    covered = np.bincount(regions.reshape(-1), weights=(levels > 0).numpy().reshape(-1))
    return torch.from_numpy((covered > 0.5 * np.bincount(regions.reshape(-1)))[regions])


def sample_levels(patch_object: PatchObject, size: tuple[int, int], pixels: tuple[Tensor, Tensor]) -> Tensor:
    """Return the levels of an object at some rows and columns of an image of `size`, interpolated bilinearly."""
    return upsample_at(patch_object.levels[None], size, pixels)[0]
