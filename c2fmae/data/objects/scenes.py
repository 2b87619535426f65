"""Scenes whose objects are read from annotations, and how many objects their images have."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.json_file import parse_json_object
from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Objects
from c2fmae.core.scene import Scene
from c2fmae.data.combine import ConcatScenes, SubsetScenes
from c2fmae.data.geometry import scene_size
from c2fmae.data.importers.common import IdMap, ImportedScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes, WrappedScenes
from c2fmae.data.stored import StoredScenes

BOXES_ONLY_FIX = "read boxes only: --boxes-only of `c2fmae data`, or --set mask_head=null of `c2fmae eval detect`"
"""How an error ends if the data has masks for some objects only."""


class ObjectScenes(ImportedScenes):
    """Images with objects; a subclass reads the annotations."""

    object_counts: Int64[Tensor, " images"]
    """Number of objects of each image that are no crowds."""
    image_sizes: tuple[tuple[int, int], ...] | None = None
    """Height and width of each image; None if the annotations do not have them."""

    def __init__(
        self, name: str, classes: Sequence[ClassInfo], folder: Path, names: Sequence[str], location: Path
    ) -> None:
        info = DatasetInfo(name=name, granularities=("rgb",), object_classes=tuple(classes))
        super().__init__(info, folder, names, location, [image_key(file) for file in names])

    def __getitem__(self, index: int) -> Scene:
        scene = super().__getitem__(index)
        return replace(scene, objects=self.load_objects(index, scene_size(scene)))

    @abstractmethod
    def load_objects(self, index: int, image_size: tuple[int, int]) -> Objects:
        """Return the objects of an image with a height and a width."""

    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:  # noqa: ARG002
        return {}


def check_image_size(image: object, size: tuple[int, int], stated: tuple[int, int], annotation: object) -> None:
    """Raise a `UserError` for an image of another height and width than its annotation states."""
    if size == stated:
        return
    (height, width), (rows, columns) = size, stated
    fix = "Replace the one that is wrong"
    if (columns, rows) == size:
        fix += "; the boxes of an image that its EXIF data rotates must be those of the upright image"
    raise UserError(f"{image}: has {width}×{height} pixels, but {columns}×{rows} in {annotation}. {fix}")


def image_key(name: str) -> str:
    """Return the key of an image: its path in the directory of images, without suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122 - Path has no empty names, which a list may have


def count_objects(scenes: Scenes) -> Int64[Tensor, " scenes"] | None:
    """Return how many objects that are no crowds each image has; None if that is not known before it is decoded."""
    if isinstance(scenes, ObjectScenes):
        return scenes.object_counts
    if isinstance(scenes, SubsetScenes):
        counts = count_objects(scenes.source)
        return None if counts is None else counts[scenes.rows]
    if isinstance(scenes, ConcatScenes):
        parts = [count for count in map(count_objects, scenes.sources) if count is not None]
        return torch.cat(parts) if len(parts) == len(scenes.sources) else None
    if isinstance(scenes, WrappedScenes) and scenes.info.object_classes == scenes.source.info.object_classes:
        return count_objects(scenes.source)
    if isinstance(scenes, StoredScenes) and scenes.info.object_classes:
        return torch.tensor([_count_stored_objects(scenes, index) for index in range(len(scenes))])
    return None


def _count_stored_objects(scenes: StoredScenes, index: int) -> int:
    try:
        is_crowd = parse_json_object(scenes.read_objects_bytes(index)).get("is_crowd")
    except ValueError:
        is_crowd = None
    # An invalid file counts as one with objects, so that its error is not hidden.
    return is_crowd.count(False) if isinstance(is_crowd, list) else 1


def select_with_objects(scenes: Scenes) -> Scenes:
    """Leave out images without objects, if it is known which these are before they are decoded."""
    counts = count_objects(scenes)
    if counts is None or bool((counts > 0).all()):
        return scenes
    return SubsetScenes(scenes, torch.nonzero(counts).flatten().numpy())
