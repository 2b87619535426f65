"""Opening of scenes with objects by source."""

from collections.abc import Collection
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.data.objects.coco import open_coco_objects
from c2fmae.data.objects.find import find_annotated_sets, is_coco_json, is_voc_list, is_yolo_folder
from c2fmae.data.objects.maps import MapObjects
from c2fmae.data.objects.voc import open_voc_objects
from c2fmae.data.objects.yolo import open_yolo_objects
from c2fmae.data.problems import Problem
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import DataSource, inspect_scenes, select_complete


def open_objects(
    source: DataSource, *, masks: bool = True, keys: Collection[str] | None = None, **options: object
) -> Scenes:
    """Open scenes with an image and its objects; raise an error for any problem that can be found without decoding.

    Args:
        source: a json of COCO's format; a directory of images of YOLO's format; a list of VOC, as
            `ROOT/ImageSets/Main/val.txt`; or any source of `open_scenes` with objects or with semantic and instance
            maps.
        masks: without them, only boxes are read.
        keys: load only these samples, and ignore problems of others.
        options: options of a registered name; `generated` has size, length, seed, …
    """
    return select_complete(source, *inspect_objects(source, masks=masks, **options), keys)


def inspect_objects(
    source: DataSource, *, masks: bool = True, **options: object
) -> tuple[Scenes | None, tuple[Problem, ...]]:
    """Open the complete samples of a source of objects, and list the problems of the others."""
    if isinstance(source, str | Path):
        path = Path(source)
        if is_coco_json(path):
            return open_coco_objects(path, masks=masks)
        if is_voc_list(path):
            return open_voc_objects(path)
        if is_yolo_folder(path):
            return open_yolo_objects(path, masks=masks)
        if sets := find_annotated_sets(path):
            raise UserError(f"{path}: contains several sets: {', '.join(sets)}. Choose one, as in {sets['train']}")
    scenes, problems = inspect_scenes(source, granularities=None, folders=None, **options)
    return (None if scenes is None else MapObjects(scenes, masks=masks)), problems


def has_annotations(source: DataSource) -> bool:
    """Return whether a source has annotations of objects in a format of other tools."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    return is_coco_json(path) or is_voc_list(path) or is_yolo_folder(path)
