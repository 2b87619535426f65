"""Objects of a json in COCO's format, with any categories.

Categories may have gaps and any order: labels follow their order in the file. Segmentations may be polygons, run
lengths or compressed run lengths. Boxes and areas are those of the file, also where a box has no area or lies outside
of the image: an evaluation counts these as pycocotools does, and the crops of a training leave them out.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Objects, measure_mask
from c2fmae.core.text import format_count
from c2fmae.data.importers.coco_json import MAX_JSON_BYTES, read_column
from c2fmae.data.importers.coco_rle import outline_to_rle
from c2fmae.data.objects.scenes import ObjectScenes, check_image_size, image_key
from c2fmae.data.objects.table import Corners, ObjectRow, ObjectTable
from c2fmae.data.problems import Problem

log = logging.getLogger(__name__)

_FIX = "Fix or remove it"
_MAX_NUMBER = 1e9
_MAX_ID = 2**63


class CocoObjects(ObjectScenes):
    """The images that a json lists, with their annotations, and without images that have a problem."""

    def __init__(
        self, path: Path, classes: Sequence[ClassInfo], folder: Path, images: "_Images", table: ObjectTable
    ) -> None:
        super().__init__(path.stem, classes, folder, images.names, path)
        self._ids, self._table, self._json = images.ids, table, path
        self.image_sizes = images.sizes
        self.object_counts = table.count_objects()

    def load_objects(self, index: int, image_size: tuple[int, int]) -> Objects:
        """Return the objects of an image; raise an error if the file has another size."""
        sizes = self.image_sizes
        if sizes is not None:
            check_image_size(self._image_path(index), image_size, sizes[index], self._json)
        image_id = self._ids[index]
        return replace(self._table[index], image_id=image_id if isinstance(image_id, int) else None)


class _Images:
    """Ids, names and sizes of the images of a json."""

    def __init__(self, ids: Sequence[int | str], names: Sequence[str], sizes: Sequence[tuple[int, int]] | None) -> None:
        self.ids = tuple(ids)
        self.names = tuple(names)
        self.sizes = None if sizes is None else tuple(sizes)

    def select(self, rows: Sequence[int]) -> "_Images":
        sizes = None if self.sizes is None else [self.sizes[row] for row in rows]
        return _Images([self.ids[row] for row in rows], [self.names[row] for row in rows], sizes)


def open_coco_objects(path: Path, *, masks: bool = True) -> tuple[CocoObjects | None, tuple[Problem, ...]]:
    """Open the images without problems of a json, and list the problems of the others."""
    document = read_json(path, max_bytes=MAX_JSON_BYTES, fix="Export it again")
    classes = _read_classes(path, document)
    ids = read_column(path, document, "images", "id", int, str)
    images = _Images(ids, read_column(path, document, "images", "file_name", str), _read_sizes(path, document))
    if len(set(ids)) < len(ids):
        repeated = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{path}: two images have the id {repeated}. Give each its own")
    folder = _find_image_folder(path, images.names)
    annotations = _group_by_image(path, document, ids)
    has_masks = masks and images.sizes is not None and any(map(_is_outlined, _flatten(annotations)))
    reader = _AnnotationReader(path, classes, has_masks=has_masks, ids_by_order=_need_new_ids(annotations))
    problems = _find_missing_images(path, folder, images.names)
    broken = {problem.key for problem in problems}
    rows_by_image, complete = [], []
    for number, (name, entries) in enumerate(zip(images.names, annotations, strict=True)):
        rows, texts = reader.read(entries, None if images.sizes is None else images.sizes[number])
        problems += [Problem(image_key(name), text) for text in texts]
        if not texts and image_key(name) not in broken:
            rows_by_image.append(rows)
            complete.append(number)
    if not complete:
        return None, tuple(problems or [Problem(None, f"{path}: lists no images. Check that it is complete")])
    table = ObjectTable.from_rows(rows_by_image, has_masks=has_masks)
    return CocoObjects(path, classes, folder, images.select(complete), table), tuple(problems)


class _AnnotationReader:
    """Converts annotations to rows."""

    def __init__(self, path: Path, classes: Sequence[ClassInfo], *, has_masks: bool, ids_by_order: bool) -> None:
        self._path, self._has_masks, self._ids_by_order = path, has_masks, ids_by_order
        self._labels = {entry.coco_id: label for label, entry in enumerate(classes)}
        self._num_read = 0

    def read(
        self, entries: Sequence[dict[str, Any]], size: tuple[int, int] | None
    ) -> tuple[list[ObjectRow], list[str]]:
        """Return the rows of an image, and the problems of its annotations."""
        rows, problems = [], []
        for entry in entries:
            self._num_read += 1
            number = self._num_read if self._ids_by_order else entry["id"]
            location = f"{self._path}: annotation {number}"
            try:
                rows.append(self._read_annotation(entry, number, size, location))
            except UserError as error:
                problems.append(str(error))
        return rows, problems

    def _read_annotation(
        self, entry: dict[str, Any], number: int, size: tuple[int, int] | None, location: str
    ) -> ObjectRow:
        category = entry.get("category_id")
        if category not in self._labels:
            raise UserError(f"{location}: category_id {category} is not in `categories`. Add it there, or fix it")
        mask = None
        if self._has_masks and size is not None:
            if not _is_outlined(entry):
                raise UserError(
                    f"{location}: has no segmentation, but others have. Add it, or read boxes only, for a detector"
                    " without masks"
                )
            mask = outline_to_rle(entry["segmentation"], size, location)
        box, area = _read_box(entry, mask, size, location)
        return ObjectRow(box, self._labels[category], bool(entry.get("iscrowd")), area, number, mask)


def _read_box(
    entry: Mapping[str, Any], mask: bytes | None, size: tuple[int, int] | None, location: str
) -> tuple[Corners, float]:
    """Return box and area of an annotation; those of the mask where it has none itself."""
    box, area = entry.get("bbox"), entry.get("area")
    bounds = num_pixels = None
    if mask is not None and size is not None and (not box or area is None):
        bounds, num_pixels = measure_mask(mask, size[0])
    if box:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
            raise UserError(
                f"{location}: bbox is {repr(box)[:60]} (expected [x, y, width, height] as finite numbers). {_FIX}"
            )
        x, y, width, height = box
        if min(width, height) < 0:
            raise UserError(f"{location}: bbox {repr(box)[:60]} has a negative width or height. {_FIX}")
        corners: Corners = (x, y, x + width, y + height)
    elif bounds is not None:
        corners = bounds
    else:
        raise UserError(f"{location}: has no bbox. Add it, or remove the annotation")
    if area is None:
        area = num_pixels if num_pixels is not None else (corners[2] - corners[0]) * (corners[3] - corners[1])
    elif not _is_finite(area) or area < 0:
        raise UserError(f"{location}: area is {repr(area)[:60]} (expected a number of pixels). {_FIX}")
    return corners, area


def _read_classes(path: Path, document: Mapping[str, Any]) -> list[ClassInfo]:
    ids = read_column(path, document, "categories", "id", int)
    names = read_column(path, document, "categories", "name", str)
    if not ids:
        raise UserError(f"{path}: lists no categories. Add them")
    category, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: {count} categories have the id {category}. Give each its own")
    return [
        ClassInfo(name=name or f"category {id_}", is_thing=True, coco_id=id_)
        for id_, name in zip(ids, names, strict=True)
    ]


def _read_sizes(path: Path, document: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Return height and width of each image; None if the file has none, as it may without segmentations."""
    if not any("height" in entry for entry in document["images"]):
        return None
    heights, widths = (read_column(path, document, "images", side, int) for side in ("height", "width"))
    return list(zip(heights, widths, strict=True))


def _group_by_image(path: Path, document: Mapping[str, Any], ids: Sequence[int | str]) -> list[list[dict[str, Any]]]:
    """Return the annotations of each image; log how many belong to images that are not listed."""
    read_column(path, document, "annotations", "category_id", int)
    owners = read_column(path, document, "annotations", "image_id", int, str)
    row_by_id = {id_: row for row, id_ in enumerate(ids)}
    grouped: list[list[dict[str, Any]]] = [[] for _ in ids]
    unlisted = Counter[int | str]()
    for owner, entry in zip(owners, document["annotations"], strict=True):
        if owner in row_by_id:
            grouped[row_by_id[owner]].append(entry)
        else:
            unlisted[owner] += 1
    if unlisted and unlisted.total() == len(owners):
        raise UserError(
            f"{path}: no annotation belongs to a listed image: image_id is {owners[0]!r}, the first id of an image"
            f" {ids[0]!r}. Give images and annotations the same ids"
            if ids
            else f"{path}: lists no images. Check that it is complete"
        )
    if unlisted:
        log.warning(
            "%s: %s left out, since their images are not listed (for example image_id %r)",
            path,
            format_count(unlisted.total(), "annotation is", "annotations are"),
            next(iter(unlisted)),
        )
    return grouped


def _need_new_ids(annotations: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Return whether annotations are numbered by their order: an id is missing or occurs twice."""
    ids = [entry.get("id") for entry in _flatten(annotations)]
    return any(type(id_) is not int or abs(id_) >= _MAX_ID for id_ in ids) or len(set(ids)) < len(ids)


def _find_image_folder(path: Path, names: Sequence[str]) -> Path:
    """Return the directory of the images: named like the json, `images`, or that of the json."""
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    split = path.stem.removeprefix("instances_")
    candidates = [root / split, root / "images" / split, root / "images", path.parent, root]
    folders = [folder for folder in candidates if folder.is_dir()]
    for folder in folders:
        if any((folder / name).is_file() for name in names[:8]):
            return folder
    tried = ", ".join(str(folder) for folder in dict.fromkeys(candidates))
    raise UserError(
        f"{path}: its images, such as {names[0] if names else 'none'!r}, are in none of {tried}. Move them to the first"
    )


def _find_missing_images(path: Path, folder: Path, names: Sequence[str]) -> list[Problem]:
    """Return a problem for each image that does not exist; a directory is listed once."""
    existing: dict[str, set[str]] = {}
    problems = []
    for name in names:
        parent, file = os.path.split(folder / name)
        if parent not in existing:
            existing[parent] = {entry.name for entry in Path(parent).iterdir()} if Path(parent).is_dir() else set()
        if file not in existing[parent]:
            text = f"{folder / name}: does not exist, but is listed in {path}. Add it, or remove it from the list"
            problems.append(Problem(image_key(name), text))
    return problems


def _is_outlined(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("segmentation"))


def _flatten(annotations: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    return [entry for entries in annotations for entry in entries]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
