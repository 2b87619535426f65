"""COCO with panoptic or with instance annotations.

ROOT/{split}/*.jpg and in ROOT/annotations either panoptic_{split}.json with panoptic_{split}/*.png, whose colours
are segment ids, or instances_{split}.json. Annotations are parsed once, into columns that are small enough to pickle
for worker processes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.json_file import read_json
from c2fmae.core.labels import ClassInfo
from c2fmae.core.text import format_count
from c2fmae.data.importers.coco_json import MAX_JSON_BYTES, read_column
from c2fmae.data.importers.coco_rle import outline_to_rle, paint_outlines
from c2fmae.data.importers.common import (
    IdMap,
    ImportedScenes,
    check_dir_exists,
    check_split_exists,
    read_colour_png,
)
from c2fmae.data.info import DatasetInfo
from c2fmae.data.instance_ids import numbers_to_instance_ids
from c2fmae.data.label_spaces import COCO_PANOPTIC
from c2fmae.data.remap import remap_ids

SegmentIds = Int[np.ndarray, " segments"]
SegmentFlags = Bool[np.ndarray, " segments"]
SegmentMap = Integer[np.ndarray, "height width"]

_THINGS = [entry for entry in COCO_PANOPTIC.classes if entry.is_thing]
_TABLE = COCO_PANOPTIC.coco_id_table()


class CocoPanoptic(ImportedScenes):
    """COCO with panoptic maps: things are objects 1, 2, … in the order of `segments_info`.

    Pixels in no segment are 255 in both maps. A crowd has its class, and 255 in the instance map. Images without an
    annotation are left out.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        annotations = Path(root) / "annotations"
        path, document = _read_annotations(Path(root), "panoptic", split)
        self._pngs = annotations / f"panoptic_{split}"
        check_dir_exists(self._pngs, f"Extract panoptic_{split}.zip there")
        _check_categories(path, document, COCO_PANOPTIC.classes)
        images = read_column(path, document, "images", "id", int)
        names = read_column(path, document, "images", "file_name", str)
        positions = _image_positions(path, images, read_column(path, document, "annotations", "image_id", int))
        infos = read_column(path, document, "annotations", "segments_info", list)
        order = np.argsort(positions, kind="stable")
        segments = {"all segments_info": [segment for row in order for segment in infos[row]]}
        self._ids = np.array(read_column(path, segments, "all segments_info", "id", int), np.int64)
        self._categories = np.array(read_column(path, segments, "all segments_info", "category_id", int), np.int64)
        self._is_crowd = np.array(read_column(path, segments, "all segments_info", "iscrowd", int), bool)
        self._ends = np.cumsum([len(infos[row]) for row in order])
        pngs = read_column(path, document, "annotations", "file_name", str)
        self._png_names = tuple(pngs[row] for row in order)
        self._json = path
        _check_category_ids(path, "segments", self._categories, COCO_PANOPTIC.classes)
        info = DatasetInfo(name=COCO_PANOPTIC.name, classes=COCO_PANOPTIC.classes)
        super().__init__(info, Path(root) / split, [names[position] for position in positions[order]], path)

    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:
        path = self._pngs / self._png_names[index]
        red, green, blue = read_colour_png(path)
        stored = red + 256 * green + 65536 * blue
        columns = (
            column[_segment_slice(self._ends, index)] for column in (self._ids, self._categories, self._is_crowd)
        )
        return decode_panoptic_maps(stored, *columns, png=str(path), listing=str(self._json))


class CocoInstances(ImportedScenes):
    """COCO with instance annotations, in the label space of its panoptic maps.

    Pixels in no object have no class (255) and instance id 0. Where objects overlap, the smaller one is on top. Objects
    are numbered 1, 2, … in the order of the file; the number of a completely covered object is not used. A crowd has
    its class, and 255 in the instance map. An image may have no object.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        path, document = _read_annotations(Path(root), "instances", split)
        _check_categories(path, document, _THINGS)
        images = read_column(path, document, "images", "id", int)
        heights, widths = (read_column(path, document, "images", side, int) for side in ("height", "width"))
        self._sizes: tuple[tuple[int, int], ...] = tuple(zip(heights, widths, strict=True))
        positions = _image_positions(path, images, read_column(path, document, "annotations", "image_id", int))
        order = np.argsort(positions, kind="stable")
        annotation_ids = read_column(path, document, "annotations", "id", int)
        outlines = read_column(path, document, "annotations", "segmentation", list, dict)
        self._outlines = tuple(
            outline_to_rle(outlines[row], self._sizes[positions[row]], f"{path}: annotation {annotation_ids[row]}")
            for row in order
        )
        self._categories = np.array(read_column(path, document, "annotations", "category_id", int), np.int64)[order]
        self._is_crowd = np.array(read_column(path, document, "annotations", "iscrowd", int), bool)[order]
        self._ends = np.cumsum(np.bincount(positions, minlength=len(images)))
        self._json = path
        _check_category_ids(path, "annotations", self._categories, _THINGS)
        info = DatasetInfo(name="coco-instances", classes=COCO_PANOPTIC.classes)
        super().__init__(info, Path(root) / split, read_column(path, document, "images", "file_name", str), path)

    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:
        segments = _segment_slice(self._ends, index)
        location = f"{self._json}: image {self._names[index]}"
        owner = paint_outlines(self._outlines[segments], self._sizes[index])
        return _segments_to_maps(location, owner, self._categories[segments], self._is_crowd[segments], unowned=0)


def decode_panoptic_maps(
    stored: SegmentMap, ids: SegmentIds, categories: SegmentIds, is_crowd: SegmentFlags, *, png: str, listing: str
) -> dict[str, IdMap]:
    """Return the maps of one image whose pixels are the `ids` of segments; `png` and `listing` are for messages."""
    owner = _segment_owners(stored, ids, png, listing)
    return _segments_to_maps(png, owner, categories, is_crowd, unowned=IGNORE)


def _segment_owners(stored: SegmentMap, ids: SegmentIds, png: str, listing: str) -> SegmentMap:
    """Return k at the pixels of the k-th of `ids`, counted from 1, and 0 where the file has 0."""
    order = np.argsort(ids, kind="stable")
    known = np.concatenate([[0], ids[order]])
    position = np.searchsorted(known, stored).clip(max=len(known) - 1)
    is_unknown = known[position] != stored
    if is_unknown.any():
        values, counts = np.unique(stored[is_unknown], return_counts=True)
        worst = int(counts.argmax())
        others = f" (and {format_count(len(values) - 1, 'more id')})" if len(values) > 1 else ""
        raise UserError(
            f"{png}: id {values[worst]} on {counts[worst]} pixels{others} is not in the `segments_info` of {listing}."
            " Extract both from the same release"
        )
    is_empty = np.bincount(position.ravel(), minlength=len(known))[1:] == 0
    if is_empty.any():
        others = f" ({is_empty.sum() - 1} more have none either)" if is_empty.sum() > 1 else ""
        raise UserError(
            f"{png}: segment {known[1:][is_empty][0]} of {listing} has no pixels{others}."
            " Extract both from the same release"
        )
    owner: SegmentMap = np.concatenate([[0], order + 1])[position]
    return owner


def _segments_to_maps(
    location: str, owner: SegmentMap, categories: SegmentIds, is_crowd: SegmentFlags, *, unowned: int
) -> dict[str, IdMap]:
    """Return both maps of segments; `unowned` is the instance id of pixels whose `owner` is 0."""
    semantic = remap_ids(np.concatenate([[0], categories])[owner], _TABLE, location)
    is_object = _is_in_classes(categories, _THINGS) & ~is_crowd
    ids = numbers_to_instance_ids(np.cumsum(is_object) * is_object)
    ids[is_crowd] = IGNORE
    instance = np.concatenate([np.array([unowned], ids.dtype), ids])[owner]
    return {"semantic": IdMap(location, semantic), "instance": IdMap(location, instance)}


def _read_annotations(root: Path, kind: str, split: str) -> tuple[Path, dict[str, Any]]:
    known = [path.stem.removeprefix(f"{kind}_") for path in (root / "annotations").glob(f"{kind}_*.json")]
    check_split_exists(root, split, known, f"annotations/{kind}_*.json")
    check_dir_exists(root / split, f"Extract {split}.zip there")
    path = root / "annotations" / f"{kind}_{split}.json"
    return path, read_json(path, max_bytes=MAX_JSON_BYTES, fix="Extract it from the official release again")


def _check_categories(path: Path, document: Mapping[str, Any], classes: Sequence[ClassInfo]) -> None:
    """Raise an error for a file whose category ids differ from COCO's."""
    names = {entry.coco_id: entry.name for entry in classes}
    ids, labels = (read_column(path, document, "categories", *column) for column in (("id", int), ("name", str)))
    for coco_id, name in zip(ids, labels, strict=True):
        if names.get(coco_id) != name:
            means = f"means {names[coco_id]!r} in COCO" if coco_id in names else "is not used in COCO"
            raise UserError(
                f"{path}: category {coco_id} is {name!r}, but that id {means}."
                " Import data with other classes as a directory tree"
            )


def _check_category_ids(path: Path, table: str, categories: SegmentIds, classes: Sequence[ClassInfo]) -> None:
    ids, counts = np.unique(categories[~_is_in_classes(categories, classes)], return_counts=True)
    if len(ids):
        raise UserError(
            f"{path}: category {ids[0]} of {counts[0]} {table} is not one of the {len(classes)} categories of COCO."
            " Use the file of the official release"
        )


def _is_in_classes(categories: SegmentIds, classes: Sequence[ClassInfo]) -> SegmentFlags:
    return np.isin(categories, np.array([entry.coco_id for entry in classes]))


def _segment_slice(ends: Int[np.ndarray, " images"], index: int) -> slice:
    """Return the rows of an image's segments in the columns."""
    return slice(ends[index - 1] if index else 0, ends[index])


def _image_positions(path: Path, images: Sequence[int], image_ids: Sequence[int]) -> Int[np.ndarray, " annotations"]:
    """Return the index in `images` of the image of every annotation."""
    index_by_id = {image: index for index, image in enumerate(images)}
    if len(index_by_id) < len(images):
        raise UserError(
            f"{path}: {len(images)} images have {len(index_by_id)} distinct ids. Use the file of the official release"
        )
    for image in image_ids:
        if image not in index_by_id:
            raise UserError(f"{path}: an annotation has image_id {image}, which is not in `images`. Fix or remove it")
    return np.array([index_by_id[image] for image in image_ids], np.int64)
