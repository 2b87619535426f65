"""Objects of a json in COCO's format, with any categories.

Categories may have gaps and any order: labels follow their order in the file. Segmentations may be polygons, run
lengths or compressed run lengths. Boxes and areas are those of the file, also where a box has no area or lies outside
of the image: an evaluation counts these as pycocotools does, and the crops of a training leave them out.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from c2fmae.core.errors import UserError
from c2fmae.core.json_file import pause_gc, read_json
from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Objects, measure_mask
from c2fmae.core.text import format_count
from c2fmae.data.importers.coco_json import MAX_JSON_BYTES, read_column
from c2fmae.data.importers.coco_rle import count_short_polygons, decode_outline, encode_outline
from c2fmae.data.objects.scenes import BOXES_ONLY_FIX, ObjectScenes, check_image_size, image_key
from c2fmae.data.objects.table import Corners, ObjectRow, ObjectTable
from c2fmae.data.problems import Problem

log = logging.getLogger(__name__)

_FIX = "Fix or remove it"
_MAX_NAMED = 3  # in a message
_MAX_NUMBER = 1e9
_MAX_ID = 2**63


class CocoObjects(ObjectScenes):
    """The images that a json lists, with their annotations, and without images that have a problem."""

    def __init__(
        self, path: Path, classes: Sequence[ClassInfo], folder: Path, images: Sequence["_Image"], table: ObjectTable
    ) -> None:
        super().__init__(path.stem, classes, folder, [image.name for image in images], path)
        self._ids, self._table, self._json = [image.id for image in images], table, path
        sizes = [image.size for image in images if image.size is not None]
        self.image_sizes = tuple(sizes) or None
        self.object_counts = table.count_objects()

    def load_objects(self, index: int, image_size: tuple[int, int]) -> Objects:
        """Return the objects of an image; raise an error if the file has another size."""
        sizes = self.image_sizes
        if sizes is not None:
            check_image_size(self._image_path(index), image_size, sizes[index], self._json)
        objects, image_id = self._table[index], self._ids[index]
        masks = None if objects.masks is None else tuple(decode_outline(data, image_size) for data in objects.masks)
        return replace(objects, masks=masks, image_id=image_id if isinstance(image_id, int) else None)


class _Image(NamedTuple):
    """An entry of `images`."""

    id: int | str
    name: str
    size: tuple[int, int] | None
    """Height and width; None in a file without sizes, or if they are invalid."""


def open_coco_objects(path: Path, *, masks: bool = True) -> tuple[CocoObjects | None, tuple[Problem, ...]]:
    """Open the images without problems of a json, and list the problems of the others."""
    with pause_gc():
        return _open_coco_objects(path, masks=masks)


def _open_coco_objects(path: Path, *, masks: bool) -> tuple[CocoObjects | None, tuple[Problem, ...]]:
    document = read_json(path, max_bytes=MAX_JSON_BYTES, fix="Export it again")
    classes = _read_classes(path, document)
    images, problems = _read_images(path, document)
    folder, problems_of_files = _find_images(path, [image.name for image in images])
    problems += problems_of_files
    positions_by_image = _group_by_image(path, document, [image.id for image in images])
    reader = _AnnotationReader(path, document["annotations"], classes, masks=masks)
    if reader.has_masks and images and all(image.size is None for image in images):
        raise UserError(f"{path}: has no height and width of images, which its segmentations need. Add them")
    broken = {problem.key for problem in problems}
    rows_by_image, complete = [], []
    for image, positions in zip(images, positions_by_image, strict=True):
        key = image_key(image.name)
        rows, texts = reader.read(positions, image.size)
        problems += [Problem(key, text) for text in texts]
        if not texts and key not in broken:
            rows_by_image.append(rows)
            complete.append(image)
    reader.log_short_polygons()
    if not complete:
        return None, tuple(problems or [Problem(None, f"{path}: lists no images. Check that it is complete")])
    table = ObjectTable.from_rows(rows_by_image, has_masks=reader.has_masks)
    return CocoObjects(path, classes, folder, complete, table), tuple(problems)


class _AnnotationReader:
    """Converts annotations to rows."""

    def __init__(
        self, path: Path, annotations: Sequence[dict[str, Any]], classes: Sequence[ClassInfo], *, masks: bool
    ) -> None:
        self._path, self._annotations = path, annotations
        self.has_masks = masks and any(map(_is_outlined, annotations))
        self._has_ids = _has_unique_ids(annotations)
        self._labels = {entry.coco_id: label for label, entry in enumerate(classes)}
        self._num_short_polygons = 0

    def read(self, positions: Sequence[int], size: tuple[int, int] | None) -> tuple[list[ObjectRow], list[str]]:
        """Return the rows of an image, whose annotations have some positions, and the problems of its annotations."""
        rows, problems = [], []
        for position in positions:
            entry = self._annotations[position]
            if self._has_ids:
                number, name = entry["id"], f"annotation {entry['id']}"
            else:
                number, name = position + 1, f"annotations[{position}]"
            try:
                rows.append(self._read_annotation(entry, number, size, f"{self._path}: {name}"))
            except UserError as error:
                problems.append(str(error))
        return rows, problems

    def log_short_polygons(self) -> None:
        """Log how many polygons were left out."""
        if self._num_short_polygons:
            polygons = format_count(
                self._num_short_polygons, "polygon of fewer than 3 points is", "polygons of fewer than 3 points are"
            )
            log.warning("%s: %s left out; their objects have others", self._path, polygons)

    def _read_annotation(
        self, entry: dict[str, Any], number: int, size: tuple[int, int] | None, location: str
    ) -> ObjectRow:
        category = entry.get("category_id")
        if category not in self._labels:
            raise UserError(f"{location}: category_id {category} is not in `categories`. Add it there, or fix it")
        outline = None
        if self.has_masks and size is not None:
            if not _is_outlined(entry):
                raise UserError(f"{location}: has no segmentation, but others have. Add it, or {BOXES_ONLY_FIX}")
            outline = encode_outline(entry["segmentation"], size, location)
            self._num_short_polygons += count_short_polygons(entry["segmentation"])
        box, area = _read_box(entry, outline, size, location)
        return ObjectRow(box, self._labels[category], bool(entry.get("iscrowd")), area, number, outline)


def _read_box(
    entry: Mapping[str, Any], outline: bytes | None, size: tuple[int, int] | None, location: str
) -> tuple[Corners, float]:
    """Return box and area of an annotation; those of the mask where it has none itself."""
    box, area = entry.get("bbox"), entry.get("area")
    bounds = num_pixels = None
    if outline is not None and size is not None and (not box or area is None):
        bounds, num_pixels = measure_mask(decode_outline(outline, size), size[0])
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


def _read_images(path: Path, document: Mapping[str, Any]) -> tuple[list[_Image], list[Problem]]:
    """Return the entries of `images`, and problems of those with an invalid size or the file name of another."""
    ids = read_column(path, document, "images", "id", int, str)
    names = read_column(path, document, "images", "file_name", str)
    entries = document["images"]
    if len(set(ids)) < len(ids):
        repeated = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{path}: two images have the id {repeated}. Give each its own")
    has_sizes = any("height" in entry for entry in entries)  # which a file without segmentations does not need
    images, problems = [], []
    for row, (id_, name, entry) in enumerate(zip(ids, names, entries, strict=True)):
        size = _read_size(entry) if has_sizes else None
        if has_sizes and size is None:
            values = f"height {str(entry.get('height'))[:20]} and width {str(entry.get('width'))[:20]}"
            text = f"{path}: images[{row}] has {values} (expected numbers of pixels). Fix them"
            problems.append(Problem(image_key(name), text))
        images.append(_Image(id_, name, size))
    rows_by_key = defaultdict[str, list[int]](list)
    for row, name in enumerate(names):
        rows_by_key[image_key(name)].append(row)
    for key, rows in rows_by_key.items():
        if len(rows) > 1:
            repeats = " and ".join(f"images[{row}]" for row in rows[:2])
            text = f"{path}: {repeats} have the file_name {names[rows[0]]!r} (suffixes do not count). Remove one"
            problems.append(Problem(key, text))
    return images, problems


def _read_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of an image; None if they are not whole positive numbers, such as 480 or 480.0."""
    height, width = (_read_side(entry.get(name)) for name in ("height", "width"))
    return None if height is None or width is None else (height, width)


def _read_side(value: Any) -> int | None:
    is_valid = type(value) in (int, float) and 0 < value < _MAX_NUMBER and value == int(value)
    return int(value) if is_valid else None


def _group_by_image(path: Path, document: Mapping[str, Any], ids: Sequence[int | str]) -> list[list[int]]:
    """Return the positions of each image's annotations; log how many belong to images that are not listed."""
    read_column(path, document, "annotations", "category_id", int)
    owners = read_column(path, document, "annotations", "image_id", int, str)
    grouped: dict[int | str, list[int]] = {id_: [] for id_ in ids}
    unlisted = []
    for position, owner in enumerate(owners):
        if (positions := grouped.get(owner)) is not None:
            positions.append(position)
        else:
            unlisted.append(owner)
    if unlisted and len(unlisted) == len(owners):
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
            format_count(len(unlisted), "annotation is", "annotations are"),
            unlisted[0],
        )
    return list(grouped.values())


def _has_unique_ids(annotations: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether annotations have ids; else they are numbered by their position in the file."""
    ids = [entry.get("id") for entry in annotations]
    return all(type(id_) is int and abs(id_) < _MAX_ID for id_ in ids) and len(set(ids)) == len(ids)


def _find_images(path: Path, names: Sequence[str]) -> tuple[Path, list[Problem]]:
    """Return the directory of the images, and a problem for each image that does not exist.

    It is named like the json, `images`, or is that of the json.
    """
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    split = path.stem.removeprefix("instances_")
    candidates = list(dict.fromkeys([root / split, root / "images" / split, root / "images", path.parent, root]))
    for folder in candidates:
        missing = _list_missing(folder, names)
        if len(missing) < len(names):
            problems = [
                Problem(
                    image_key(name),
                    f"{folder / name}: does not exist, but is listed in {path}. Add it, or remove it from the list",
                )
                for name in missing
            ]
            return folder, problems
    few = ", ".join([*map(repr, names[:_MAX_NAMED]), *["…"] * (len(names) > _MAX_NAMED)])
    raise UserError(
        f"{path}: its {format_count(len(names), 'image')} ({few}) are in none of {', '.join(map(str, candidates))}."
        " Move them to the first"
    )


def _list_missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the names of which a directory has no file; a directory is listed once."""
    existing: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, file = os.path.split(folder / name)
        if parent not in existing:
            try:
                existing[parent] = set(os.listdir(parent))  # noqa: PTH208 - 100,000 paths take seconds
            except (OSError, ValueError):  # it does not exist, or its name has a NUL character
                existing[parent] = set()
        if file not in existing[parent]:
            missing.append(name)
    return missing


def _is_outlined(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("segmentation"))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
