"""PASCAL VOC: palette PNGs with a border of 255 around every object.

ROOT/ImageSets/Segmentation/{split}.txt · JPEGImages/*.jpg · SegmentationClass/*.png · SegmentationObject/*.png
"""

from collections.abc import Mapping
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file
from c2fmae.data.decode import decode_ids
from c2fmae.data.importers.common import IdMap, ImportedScenes, check_dir_exists, check_split_exists, load_class_map
from c2fmae.data.info import DatasetInfo
from c2fmae.data.label_spaces import VOC
from c2fmae.data.remap import build_id_table

_TABLE = build_id_table(len(VOC.classes))
_SPLIT_DIR = "ImageSets/Segmentation"


class Voc(ImportedScenes):
    """The segmentation part of PASCAL VOC; `root` is the directory of the year, or the one above VOCdevkit/VOC2012."""

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root)
        if (root / "VOCdevkit/VOC2012").is_dir():
            root = root / "VOCdevkit/VOC2012"
        check_split_exists(
            root, split, [path.stem for path in (root / _SPLIT_DIR).glob("*.txt")], f"{_SPLIT_DIR}/*.txt"
        )
        self._root = root
        for name in ("SegmentationClass", "SegmentationObject"):
            check_dir_exists(root / name)
        listing = root / _SPLIT_DIR / f"{split}.txt"
        try:
            keys = read_file(listing).decode().split()
        except UnicodeDecodeError as error:
            raise UserError(f"{listing}: is not a text file. Restore it from the official release") from error
        info = DatasetInfo(name="voc", classes=VOC.classes)
        super().__init__(info, root / "JPEGImages", [f"{key}.jpg" for key in keys], listing)

    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:
        classes, objects = (
            self._root / folder / f"{self.keys[index]}.png" for folder in ("SegmentationClass", "SegmentationObject")
        )
        # Object numbers, background and border have the same ids in the file and in memory.
        instance = decode_ids(read_file(objects), str(objects))
        return {"semantic": load_class_map(classes, _TABLE), "instance": IdMap(str(objects), instance)}
