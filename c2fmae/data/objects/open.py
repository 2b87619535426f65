"""Opening of scenes with objects by source."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from c2fmae.core.choice import Choice
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.combine import ConcatScenes, SubsetScenes
from c2fmae.data.objects.coco import open_coco_objects
from c2fmae.data.objects.find import check_layout, find_annotated_sets, is_coco_json, is_voc_list, is_yolo_folder
from c2fmae.data.objects.maps import MapObjects
from c2fmae.data.objects.voc import open_voc_objects
from c2fmae.data.objects.yolo import open_yolo_objects
from c2fmae.data.problems import Problem
from c2fmae.data.scenes import Scenes, WrappedScenes
from c2fmae.data.sources import DataSource, inspect_scenes, select_complete

OpenedScenes = tuple[Scenes | None, tuple[Problem, ...]]
"""The complete samples of a source, and the problems of the others."""


class BoxesOnly(WrappedScenes):
    """The scenes of another source, whose objects have no masks."""

    def __getitem__(self, index: int) -> Scene:
        scene = self.source[index]
        return scene if scene.objects is None else replace(scene, objects=replace(scene.objects, masks=None))


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


def inspect_objects(source: DataSource, *, masks: bool = True, **options: object) -> OpenedScenes:
    """Open the images and objects of a source's complete samples, and list the problems of the others."""
    if not isinstance(source, str | Path | Choice):
        return _concatenate([inspect_objects(part, masks=masks) for part in source])
    if not isinstance(source, Choice) and (annotated := _inspect_annotated(Path(source), masks=masks)) is not None:
        return annotated
    scenes, problems = inspect_scenes(source, granularities=None, folders=None, objects=True, **options)
    if scenes is None:
        return None, problems
    if not scenes.info.object_classes:
        return MapObjects(scenes, masks=masks), problems
    if scenes.info.granularities != ("rgb",):
        scenes = SubsetScenes(scenes, granularities=("rgb",))
    return (scenes if masks else BoxesOnly(scenes)), problems


def inspect_maps_and_objects(
    source: DataSource, granularities: Sequence[str] | None = None, *, masks: bool = True
) -> OpenedScenes:
    """Open all that the complete samples of a source store, and list the problems of the others.

    Unlike `inspect_objects`, this returns maps as they are. Without `masks`, objects have boxes only.
    """
    if not isinstance(source, str | Path | Choice):
        return _concatenate([inspect_maps_and_objects(part, granularities, masks=masks) for part in source])
    is_images_only = granularities is not None and {*granularities} == {"rgb"}
    if (
        not isinstance(source, Choice)
        and (annotated := _inspect_annotated(Path(source), masks=masks, is_images_only=is_images_only)) is not None
    ):
        if missing := {*(granularities or ())} - {"rgb"}:
            raise UserError(f"{source}: has boxes and images, but no {min(missing)} maps. Leave out the granularities")
        return annotated
    scenes, problems = inspect_scenes(source, granularities=granularities, objects=True)
    if scenes is not None and scenes.info.object_classes and not masks:
        scenes = BoxesOnly(scenes)
    return scenes, problems


def _inspect_annotated(path: Path, *, masks: bool, is_images_only: bool = False) -> OpenedScenes | None:
    """Open annotations of COCO's, VOC's or YOLO's format; None for other sources.

    Files beside the images of a directory are not read if only images are needed.
    """
    if len(path.parents) < 3:
        path = path.absolute()  # the names of the directories above a short relative path count, too
    if is_coco_json(path):
        return open_coco_objects(path, masks=masks)
    if is_voc_list(path):
        return open_voc_objects(path)
    if is_yolo_folder(path) and not is_images_only:
        return open_yolo_objects(path, masks=masks)
    sets = find_annotated_sets(path)
    if len(sets) == 1:
        return _inspect_annotated(Path(*sets.values()), masks=masks)
    if sets:
        raise UserError(f"{path}: contains several sets: {', '.join(sets)}. Choose one, as in {sets['train']}")
    if not is_images_only:
        check_layout(path)
    return None


def _concatenate(opened: Sequence[OpenedScenes]) -> OpenedScenes:
    parts = [scenes for scenes, _ in opened if scenes is not None]
    return ConcatScenes(parts) if parts else None, tuple(problem for _, problems in opened for problem in problems)
