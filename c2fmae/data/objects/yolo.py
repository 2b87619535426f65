"""Objects in YOLO's format: a text file for each image, and the names of classes in a `data.yaml`.

    ROOT/data.yaml: names, and perhaps path, train, val and test
    ROOT/images/val/a.jpg · ROOT/labels/val/a.txt, or ROOT/val/images/a.jpg · ROOT/val/labels/a.txt

A line is a class number and either a box (centre, width, height) or a polygon (x1 y1 x2 y2 …), as fractions of the
image's width and height. Polygons become masks as pycocotools rasterises them. An image without a file has no objects.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file, read_text
from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Objects, measure_mask
from c2fmae.core.text import format_count
from c2fmae.core.yaml_file import read_yaml
from c2fmae.data.folders import find_images
from c2fmae.data.importers.coco_rle import outline_to_rle
from c2fmae.data.objects.scenes import BOXES_ONLY_FIX, ObjectScenes
from c2fmae.data.objects.table import IDS_PER_IMAGE, Corners, ObjectRow, rows_to_objects
from c2fmae.data.problems import Problem

_MAX_BYTES = 1 << 24
_MAX_LINE_BYTES = 1 << 16
_TOLERANCE = 0.01  # by which rounding may move a coordinate out of the image


class YoloObject(NamedTuple):
    """One line of a file, as fractions of width and height."""

    label: int
    box: Corners
    polygon: tuple[float, ...] | None


class YoloObjects(ObjectScenes):
    """The images of a directory, with the objects of their text files."""

    def __init__(
        self, folder: Path, classes: Sequence[ClassInfo], names: Sequence[str], counts: Sequence[int], *, masks: bool
    ) -> None:
        super().__init__(folder.name, classes, folder, names, folder)
        self._has_masks, self._labels = masks, find_label_folder(folder)
        self.object_counts = torch.tensor(counts, dtype=torch.int64)

    def load_objects(self, index: int, image_size: tuple[int, int]) -> Objects:
        """Return the objects of an image; its text file is read again, since masks depend on the image's size."""
        path = self._labels / f"{self.keys[index]}.txt"
        height, width = image_size
        rows = []
        for number, entry in enumerate(read_label_file(path, len(self.info.object_classes)), start=1):
            x0, y0, x1, y1 = entry.box
            box, area, mask = (x0 * width, y0 * height, x1 * width, y1 * height), 0.0, None
            area = (box[2] - box[0]) * (box[3] - box[1])
            if self._has_masks and entry.polygon is not None:
                points = [value * side for value, side in zip(entry.polygon, cycle((width, height)), strict=False)]
                mask = outline_to_rle([points], image_size, f"{path}: line {number}")
                area = measure_mask(mask, height)[1]
            rows.append(ObjectRow(box, entry.label, False, area, index * IDS_PER_IMAGE + number, mask))
        return rows_to_objects(rows, has_masks=self._has_masks)


def open_yolo_objects(folder: Path, *, masks: bool = True) -> tuple[YoloObjects | None, tuple[Problem, ...]]:
    """Open the images without problems of a directory, and list the problems of the others. Reads all text files."""
    classes = read_class_names(folder)
    labels = find_label_folder(folder)
    problems: list[Problem] = []
    suffix_by_key = find_images(folder, problems)
    problems += [
        Problem(key, f"{path}: has objects, but {folder}/{key} is not an image. Add it, or remove the text file")
        for key, path in find_label_files(labels)
        if key not in suffix_by_key
    ]
    names, counts = [], []
    num_boxes = num_polygons = 0
    for key in sorted(suffix_by_key):
        try:
            entries = read_label_file(labels / f"{key}.txt", len(classes))
        except UserError as error:
            problems.append(Problem(key, str(error)))
            continue
        num_polygons += sum(entry.polygon is not None for entry in entries)
        num_boxes += sum(entry.polygon is None for entry in entries)
        names.append(key + suffix_by_key[key])
        counts.append(len(entries))
    if not names:
        return None, tuple(problems or [Problem(None, f"{folder}: contains no images. Check the path")])
    if num_boxes == num_polygons == 0:
        raise UserError(f"{labels}: has no objects for the {len(names)} images of {folder}. Check the path")
    if masks and num_boxes and num_polygons:
        raise UserError(
            f"{labels}: has {format_count(num_boxes, 'box', 'boxes')} and {format_count(num_polygons, 'polygon')}."
            f" Give a polygon for every object, or {BOXES_ONLY_FIX}"
        )
    return YoloObjects(folder, classes, names, counts, masks=masks and num_polygons > 0), tuple(problems)


def read_label_file(path: Path, num_classes: int) -> list[YoloObject]:
    """Return the objects of a text file; none if it does not exist."""
    if not path.exists():
        return []
    text = read_text(path, max_bytes=_MAX_BYTES, fix="Export it again").removeprefix("\ufeff")
    lines = enumerate(text.splitlines(), start=1)
    return [_parse_line(line, num_classes, f"{path}: line {number}") for number, line in lines if line.strip()]


def find_label_files(labels: Path) -> Iterator[tuple[str, Path]]:
    """Yield the keys and the paths of text files with objects; others are lists of classes, notes or empty."""
    for path in sorted(labels.rglob("*.txt")):
        if has_object(path):
            yield path.relative_to(labels).with_suffix("").as_posix(), path


def has_object(path: Path) -> bool:
    """Return whether the first line of a file is a class number with coordinates."""
    try:
        with open_file(path) as file:
            values = [float(word) for word in file.readline(_MAX_LINE_BYTES).removeprefix(BOM_UTF8).split()]
    except (UserError, ValueError):
        return False
    return len(values) > 4 and values[0].is_integer()


def _parse_line(line: str, num_classes: int, location: str) -> YoloObject:
    try:
        label, *values = map(float, line.split())
    except ValueError as error:
        raise UserError(
            f"{location}: {line[:60]!r} are not numbers (expected a class, then coordinates). Fix it"
        ) from error
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise UserError(
            f"{location}: has {format_count(len(values), 'coordinate')} (expected 4 of a box, or x and y of at least 3"
            " points). Fix or remove it"
        )
    if label not in range(num_classes):
        raise UserError(f"{location}: class {label:g} is not one of the {num_classes} names of data.yaml. Add it there")
    outside = [value for value in values if not -_TOLERANCE <= value <= 1 + _TOLERANCE]  # NaN too
    if outside:
        raise UserError(
            f"{location}: coordinate {outside[0]:g} is not a fraction of the image (expected 0 to 1). Fix it"
        )
    if len(values) == 4:
        x, y, width, height = values
        return YoloObject(int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None)
    x_values, y_values = values[::2], values[1::2]
    return YoloObject(int(label), (min(x_values), min(y_values), max(x_values), max(y_values)), tuple(values))


def find_label_folder(folder: Path) -> Path:
    """Return the directory of the text files: `labels` in place of the last `images` of the path, or that of images."""
    parts = list(folder.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        labels = Path(*parts)
        if labels.is_dir():
            return labels
    return folder


def find_class_file(folder: Path, num_levels: int = 3) -> Path | None:
    """Return the yaml with the names of classes, in a directory of images or at most some levels above it."""
    for parent in [folder, *folder.absolute().parents[:num_levels]]:
        for path in sorted(
            [*parent.glob("*.yaml"), *parent.glob("*.yml")], key=lambda path: (path.stem != "data", path)
        ):
            if _has_names(path):
                return path
    return None


def _has_names(path: Path) -> bool:
    try:
        return "names" in read_yaml(path)
    except UserError:
        if path.stem == "data":
            raise
        return False  # perhaps a file of another program


def read_class_names(folder: Path) -> list[ClassInfo]:
    """Return the classes of a directory of images, from the yaml above it."""
    path = find_class_file(folder)
    if path is None:
        raise UserError(
            f"{folder}: has no data.yaml with `names` of classes, here or above it. Add it, such as `names: [car, bus]`"
        )
    return parse_names(path, read_yaml(path)["names"])


def parse_names(path: Path, names: Any) -> list[ClassInfo]:
    """Return the classes of `names`: a list, or a mapping from 0, 1, … to names."""
    if isinstance(names, Mapping):
        numbers = sorted((str(number) for number in names), key=lambda number: (len(number), number))
        if numbers != [str(number) for number in range(len(numbers))]:
            raise UserError(
                f"{path}: `names` has the classes {', '.join(numbers[:5])} (expected 0, 1, …). Number them so"
            )
        names = [names[key] for key in sorted(names, key=lambda key: int(key))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: `names` has no names (expected a list, or 0: name, 1: name, …). Add them")
    for number, name in enumerate(names):
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            value = json.dumps(name)[:40]
            also = ", which yes, no, on and off mean in YAML" if isinstance(name, bool) else ""
            raise UserError(f"{path}: name {number} of `names` is {value} (expected text){also}. Write it in quotes")
    return [ClassInfo(name=str(name) or f"class {number}", is_thing=True) for number, name in enumerate(names)]
