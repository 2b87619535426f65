"""Objects in PASCAL VOC's format: an xml with boxes for each image. There are no masks.

ROOT/ImageSets/Main/{split}.txt · Annotations/*.xml · JPEGImages/*.jpg. Boxes count pixels from 1 and include the last
one; a difficult object becomes a crowd, which is neither trained on nor counted as a miss.
"""

import re
from collections.abc import Container, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file, read_text
from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Objects
from c2fmae.data.folders import find_images
from c2fmae.data.importers.common import check_dir_exists
from c2fmae.data.label_spaces import VOC
from c2fmae.data.objects.scenes import ObjectScenes, check_image_size
from c2fmae.data.objects.table import IDS_PER_IMAGE, ObjectRow, ObjectTable
from c2fmae.data.problems import Problem

_MAX_BYTES = 1 << 24
_MAX_COORDINATE = 1e9
_FIX = "Fix it, or remove the image from the list"
_OFFICIAL_NAMES = tuple(entry.name for entry in VOC.classes if entry.is_thing)


class VocObjects(ObjectScenes):
    """The images of a list, with the boxes of their xml files."""

    def __init__(
        self,
        listing: Path,
        classes: Sequence[ClassInfo],
        folder: Path,
        names: Sequence[str],
        sizes: Sequence[tuple[int, int] | None],
        table: ObjectTable,
    ) -> None:
        super().__init__(listing.stem, classes, folder, names, listing)
        self._sizes, self._table = tuple(sizes), table
        self.object_counts = table.count_objects()

    def load_objects(self, index: int, image_size: tuple[int, int]) -> Objects:
        """Return the objects of an image; raise an error if the xml states another size."""
        stated = self._sizes[index]
        if stated is not None:
            check_image_size(self._image_path(index), image_size, stated, f"Annotations/{self.keys[index]}.xml")
        return self._table[index]


class _VocBox:
    """An object of an xml file."""

    def __init__(self, element: Element, location: str) -> None:
        self.name = (element.findtext("name") or "").strip()
        if not self.name:
            raise UserError(f"{location} has no name. {_FIX}")
        x0, y0, x1, y1 = (_read_number(element, side, location) for side in ("xmin", "ymin", "xmax", "ymax"))
        self.box = (x0 - 1, y0 - 1, x1, y1)
        if x1 < x0 or y1 < y0:
            raise UserError(f"{location} has xmax or ymax below xmin or ymin. {_FIX}")
        self.is_difficult = (element.findtext("difficult") or "0").strip() == "1"


def open_voc_objects(listing: Path) -> tuple[VocObjects | None, tuple[Problem, ...]]:
    """Open the images without problems of a list, and list the problems of the others. Reads all xml files."""
    root = listing.parents[2]
    annotations, folder = root / "Annotations", root / "JPEGImages"
    for path in (annotations, folder):
        check_dir_exists(path)
    problems: list[Problem] = []
    suffix_by_key = find_images(folder, problems)
    lines = read_text(listing, max_bytes=_MAX_BYTES, fix="Give a list of keys").splitlines()
    keys = list(dict.fromkeys(_read_key(line.strip(), suffix_by_key) for line in lines if line.strip()))
    boxes_by_key: dict[str, list[_VocBox]] = {}
    sizes: list[tuple[int, int] | None] = []
    for key in keys:
        try:
            boxes, size = read_voc_file(annotations / f"{key}.xml")
            if key not in suffix_by_key:
                raise UserError(f"{folder}/{key}.jpg: does not exist, but is listed in {listing}. Add it")
            boxes_by_key[key] = boxes
            sizes.append(size)
        except UserError as error:
            problems.append(Problem(key, str(error)))
    if not boxes_by_key:
        return None, tuple(problems or [Problem(None, f"{listing}: lists no images. Check that it is complete")])
    classes = _find_classes(annotations)
    labels = {name: label for label, name in enumerate(classes)}
    rows = [
        [
            ObjectRow(box.box, labels[box.name], box.is_difficult, _area(box.box), image * IDS_PER_IMAGE + number)
            for number, box in enumerate(boxes, start=1)
        ]
        for image, boxes in enumerate(boxes_by_key.values())
    ]
    names = [key + suffix_by_key[key] for key in boxes_by_key]
    infos = [ClassInfo(name=name, is_thing=True) for name in classes]
    table = ObjectTable.from_rows(rows, has_masks=False)
    return VocObjects(listing, infos, folder, names, sizes, table), tuple(problems)


def _read_key(line: str, keys: Container[str]) -> str:
    """Return the key of a line: without the 1, 0 or -1 after each key in the list of a class."""
    return line if line in keys else re.sub(r"\s+-?[01]$", "", line)


def read_voc_file(path: Path) -> tuple[list[_VocBox], tuple[int, int] | None]:
    """Return the objects of an xml file, and the height and width of the image if it states them."""
    data = read_file(path, max_bytes=_MAX_BYTES, content="xml", fix=_FIX)
    try:
        root = parse_xml(data)
    except ValueError as error:
        raise UserError(f"{path}: is not an xml annotation ({error}). {_FIX}") from error
    objects = enumerate(root.iterfind("object"), start=1)
    boxes = [_VocBox(element, f"{path}: object {number}") for number, element in objects]
    height, width = ((root.findtext(f"size/{side}") or "").strip() for side in ("height", "width"))
    is_stated = height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0  # 0 by some tools
    return boxes, (int(height), int(width)) if is_stated else None


def parse_xml(data: bytes) -> Element:
    """Return the root of an xml document. Raise a `ValueError` if it declares a type, and so perhaps entities.

    Entities may expand to gigabytes, or read other files.
    """

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(str(error)) from error
    return builder.close()


def _find_classes(annotations: Path) -> tuple[str, ...]:
    """Return the names in all xml files, so that all sets have the same labels: VOC's own, or sorted ones."""
    names = set[str]()
    for path in annotations.rglob("*.xml"):
        try:
            names.update(box.name for box in read_voc_file(path)[0])
        except UserError:
            continue  # reported if it is listed
    return _OFFICIAL_NAMES if names <= {*_OFFICIAL_NAMES} else tuple(sorted(names))


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _read_number(element: Element, side: str, location: str) -> float:
    text = element.findtext(f"bndbox/{side}")
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) < _MAX_COORDINATE:
        raise UserError(f"{location} has {side} {text!r} (expected a number). {_FIX}")
    return value
