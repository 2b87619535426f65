"""Cityscapes in its official layout, with the fine annotations.

ROOT/leftImg8bit/{split}/{city}/KEY_leftImg8bit.png · ROOT/gtFine/{split}/{city}/KEY_gtFine_labelIds.png, with numbers
from 0 to 33 · KEY_gtFine_instanceIds.png beside it: 1000 times the label plus the object's number, or the label alone.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from c2fmae.core.files import read_file
from c2fmae.core.granularity import IGNORE
from c2fmae.data.decode import decode_ids
from c2fmae.data.importers.common import (
    IdMap,
    ImportedScenes,
    check_dir_exists,
    check_same_size,
    check_split_exists,
    load_class_map,
)
from c2fmae.data.info import DatasetInfo
from c2fmae.data.instance_ids import numbers_to_instance_ids
from c2fmae.data.label_spaces import CITYSCAPES
from c2fmae.data.remap import IdTable

_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Numbers in the files of the classes of the benchmark."""
_NUM_LABEL_IDS = 34
_FIRST_OBJECT = 1000
_IMAGE_SUFFIX = "_leftImg8bit"


def _file_id_table() -> IdTable:
    """Return the semantic id of every number of a file; those that the benchmark leaves out are "not labelled"."""
    table = np.full(_NUM_LABEL_IDS, IGNORE)
    table[list(_LABEL_IDS)] = np.arange(len(_LABEL_IDS))
    return table


_TABLE = _file_id_table()
_IS_COUNTABLE = np.array([bool(entry.is_thing) for entry in CITYSCAPES.classes] + [True] * (256 - len(_LABEL_IDS)))


class Cityscapes(ImportedScenes):
    """Cityscapes with its 19 classes.

    Groups of things, and unlabelled pixels that belong to no object, have instance id 255. Caravans and trailers are
    objects without a class.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root)
        splits = [path.name for path in (root / "leftImg8bit").glob("*") if path.is_dir()]
        check_split_exists(root, split, splits, "leftImg8bit/train")
        self._annotations = root / "gtFine" / split
        check_dir_exists(self._annotations, "Extract gtFine_trainvaltest.zip there")
        info = DatasetInfo(name=CITYSCAPES.name, classes=CITYSCAPES.classes)
        images = root / "leftImg8bit" / split
        names = sorted(f"{path.parent.name}/{path.name}" for path in images.glob(f"*/*{_IMAGE_SUFFIX}.png"))
        super().__init__(info, images, names, images)
        self.keys = tuple(key.removesuffix(_IMAGE_SUFFIX) for key in self.keys)

    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:
        city, key = Path(self._names[index]).parent, self.keys[index]
        semantic = load_class_map(self._annotations / city / f"{key}_gtFine_labelIds.png", _TABLE)
        path = self._annotations / city / f"{key}_gtFine_instanceIds.png"
        stored = decode_ids(read_file(path), str(path))
        values, positions = np.unique(stored, return_inverse=True)
        is_object = values >= _FIRST_OBJECT
        instance = IdMap(str(path), numbers_to_instance_ids((np.cumsum(is_object) * is_object)[positions]))
        check_same_size(instance, semantic.ids.shape, semantic.location)
        instance.ids[_IS_COUNTABLE[semantic.ids] & (instance.ids == 0)] = IGNORE
        return {"semantic": semantic, "instance": instance}
