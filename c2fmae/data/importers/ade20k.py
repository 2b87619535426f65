"""ADE20K in the layout of its challenges (ADEChallengeData2016).

ROOT/images/{split}/*.jpg · ROOT/annotations/{split}/*.png: 0 is "other", 1 to 150 are the classes ·
ROOT/annotations_instance/{split}/*.png, a separate download: red is a class from 1 to 100, green the object's number.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.data.importers.common import (
    IdMap,
    ImportedScenes,
    check_dir_exists,
    check_same_size,
    check_split_exists,
    load_class_map,
    read_colour_png,
)
from c2fmae.data.info import DatasetInfo
from c2fmae.data.instance_ids import numbers_to_instance_ids
from c2fmae.data.label_spaces import ADE20K
from c2fmae.data.remap import build_id_table

_TABLE = build_id_table(len(ADE20K.classes), offset=1, ignore=0)
_IS_THING = np.array([bool(entry.is_thing) for entry in ADE20K.classes])


class Ade20k(ImportedScenes):
    """ADE20K; without the directory `annotations_instance`, scenes have no instance map.

    With it, pixels in no object that have no class, or a class of things, have instance id 255.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root)
        splits = [path.name for path in (root / "images").glob("*") if path.is_dir()]
        check_split_exists(root, split, splits, "images/training")
        self._classes, self._objects = (root / folder / split for folder in ("annotations", "annotations_instance"))
        check_dir_exists(self._classes, "Extract ADEChallengeData2016.zip again")
        self._has_objects = self._objects.is_dir()
        granularities = COARSE_TO_FINE if self._has_objects else ("semantic", "rgb")
        info = DatasetInfo(name=ADE20K.name, classes=ADE20K.classes, granularities=granularities)
        images = root / "images" / split
        super().__init__(info, images, sorted(path.name for path in images.glob("*.jpg")), images)

    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:
        path = self._classes / f"{self.keys[index]}.png"
        semantic = load_class_map(path, _TABLE)
        return {"semantic": semantic} | (
            {"instance": self._load_instance_map(index, semantic)} if self._has_objects else {}
        )

    def _load_instance_map(self, index: int, semantic: IdMap) -> IdMap:
        path = self._objects / f"{self.keys[index]}.png"
        red, green, _ = read_colour_png(path)
        if red.max(initial=0) > _IS_THING.sum():
            raise UserError(
                f"{path}: has class {red.max()} in red (expected at most {_IS_THING.sum()}). Use the files of the "
                "instance challenge"
            )
        instance = IdMap(str(path), numbers_to_instance_ids(green))
        check_same_size(instance, semantic.ids.shape, semantic.location)
        is_countable = np.append(_IS_THING, [True] * (IGNORE + 1 - len(_IS_THING)))  # and pixels without a class
        instance.ids[is_countable[semantic.ids] & (green == 0)] = IGNORE
        return instance
