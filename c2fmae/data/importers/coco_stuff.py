"""COCO-Stuff in the layout of its setup instructions.

ROOT/images/{split}/*.jpg · ROOT/annotations/{split}/*.png, from stuffthingmaps_trainval2017.zip: label numbers minus 1,
so 0 to 181, and 255 is "not labelled". Eleven of the numbers are never used.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from c2fmae.core.granularity import IGNORE
from c2fmae.data.importers.common import IdMap, ImportedScenes, check_dir_exists, check_split_exists, load_class_map
from c2fmae.data.info import DatasetInfo
from c2fmae.data.label_spaces import COCO_STUFF
from c2fmae.data.remap import IdTable


def _file_id_table() -> IdTable:
    """Return the semantic id of every value of a file."""
    by_number = COCO_STUFF.coco_id_table()[1:]
    table = np.full(256, -1)
    table[: len(by_number)] = by_number
    table[IGNORE] = IGNORE
    return table


_TABLE = _file_id_table()


class CocoStuff(ImportedScenes):
    """COCO-Stuff: all things and stuff as classes, without instance maps."""

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root)
        splits = [path.name for path in (root / "images").glob("*") if path.is_dir()]
        check_split_exists(root, split, splits, "images/train2017")
        self._classes = root / "annotations" / split
        check_dir_exists(self._classes, "Extract stuffthingmaps_trainval2017.zip into annotations")
        info = DatasetInfo(name=COCO_STUFF.name, classes=COCO_STUFF.classes, granularities=("semantic", "rgb"))
        images = root / "images" / split
        super().__init__(info, images, sorted(path.name for path in images.glob("*.jpg")), images)

    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:
        return {"semantic": load_class_map(self._classes / f"{self.keys[index]}.png", _TABLE)}
