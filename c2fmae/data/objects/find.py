"""Sets of objects by the files of a directory: of COCO, YOLO or VOC."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.splits import TEST_NAMES, TRAIN_NAMES, find_train_test
from c2fmae.core.yaml_file import read_yaml
from c2fmae.data.info import DATASET_FILE
from c2fmae.data.objects.yolo import find_class_file, find_label_folder, has_object
from c2fmae.data.stored import DOTTED_IMAGE_SUFFIXES

_ROBOFLOW_JSON = "_annotations.coco.json"
_VOC_LISTS = Path("ImageSets/Main")
_VOC_YEAR = Path("VOCdevkit/VOC2012")
_YAML_SUFFIXES = (".yaml", ".yml")
_UNREAD_FORMATS = {".xml": (b"<object>", "VOC's format"), ".json": (b'"shapes"', "labelme's format")}
"""Content and name of formats of a file for each image, by the suffix of the files."""
_SNIFFED_BYTES = 1 << 20
_MAX_SNIFFED = 8  # files


def find_object_sets(source: str) -> dict[str, str]:
    """Return the sources of a training and a test set, by `train` and `test`.

    `source` is a directory of COCO (`annotations/*train*.json`, or `train/_annotations.coco.json`), a data.yaml of YOLO
    or its directory, a directory of VOC (`ImageSets/Main/train.txt`), or what `find_train_test` accepts.
    """
    sets = find_annotated_sets(Path(source))
    if len(sets) == 1:
        missing = "test" if "train" in sets else "train"
        expected = " or ".join(TEST_NAMES if missing == "test" else TRAIN_NAMES)
        raise UserError(f"{source}: no {missing} set found (expected {expected}). Give --data TRAIN --test TEST")
    return sets or find_train_test(source)


def find_annotated_sets(path: Path) -> dict[str, str]:
    """Return the sets of a data.yaml or of a directory with annotations; nothing for other sources.

    A directory of maps or with a `dataset.json` is another source, whatever else it contains.
    """
    if path.suffix in _YAML_SUFFIXES and path.is_file():
        return _find_yolo_sets(path)
    if not _may_be_annotated(path):
        return {}
    if sets := _find_coco_sets(path) or _find_voc_sets(path):
        return sets
    class_file = find_class_file(path, num_levels=0)
    return (_find_yolo_sets(class_file) if class_file is not None else {}) or _find_label_sets(path)


def is_coco_json(path: Path) -> bool:
    """Return whether a path is that of a json."""
    return path.suffix == ".json" and path.is_file()


def is_voc_list(path: Path) -> bool:
    """Return whether a path is that of a list of VOC's format."""
    return path.suffix == ".txt" and path.parent.parts[-2:] == _VOC_LISTS.parts and path.is_file()


def is_yolo_folder(path: Path) -> bool:
    """Return whether a path is a directory of images with text files of YOLO's format."""
    if not path.is_dir():
        return False
    labels = find_label_folder(path)
    if labels != path:
        return any(labels.rglob("*.txt"))
    files = [path / f"{stem}.txt" for stem in _list_beside_images(path, ".txt")]
    return bool(files) and (find_class_file(path) is not None or any(map(has_object, files)))


def check_layout(folder: Path) -> None:
    """Raise an error for a directory of images with annotations in a layout that is not read.

    Otherwise they would be read as images without objects.
    """
    if not _may_be_annotated(folder):
        return
    for suffix, (content, name) in _UNREAD_FORMATS.items():
        for stem in _list_beside_images(folder, suffix)[:_MAX_SNIFFED]:
            file = folder / f"{stem}{suffix}"
            if _has_content(file, content):
                raise UserError(
                    f"{file}: is an annotation in {name} beside its image, which is not read. Export the data as a json"
                    " of COCO or as YOLO, or read images alone with --granularities rgb"
                )


def _may_be_annotated(path: Path) -> bool:
    is_described = (path / DATASET_FILE).exists() or any((path / name).is_dir() for name in GRANULARITIES)
    return path.is_dir() and not is_described


def _list_beside_images(folder: Path, suffix: str) -> list[str]:
    """Return the stems of the files with a suffix that have an image beside them."""
    names = {*os.listdir(folder)}  # noqa: PTH208 - 100,000 paths take seconds
    stems = sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))
    return [stem for stem in stems if any(stem + image in names for image in DOTTED_IMAGE_SUFFIXES)]


def _has_content(path: Path, *words: bytes) -> bool:
    """Return whether the beginning or the end of a file has some words."""
    try:
        with open_file(path) as file:
            data = file.read(_SNIFFED_BYTES)
            file.seek(max(os.fstat(file.fileno()).st_size - _SNIFFED_BYTES, 0))
            data += file.read(_SNIFFED_BYTES)
    except UserError:
        return False
    return all(word in data for word in words)


def _find_coco_sets(root: Path) -> dict[str, str]:
    files = sorted(
        (root / "annotations").glob("*.json"), key=lambda path: (not path.name.startswith("instances"), path)
    )
    exports = [root / _ROBOFLOW_JSON, *sorted(root.glob(f"*/{_ROBOFLOW_JSON}"))]
    names = {path.stem: path for path in files} | {path.parent.name: path for path in exports if path.is_file()}
    if sets := _choose_sets(names):
        return sets
    others = sorted(root.glob("*.json"))
    files = [path for path in (*files, *others)[:_MAX_SNIFFED] if _has_content(path, b'"images"', b'"categories"')]
    if sets := _choose_sets({path.stem: path for path in files}):
        return sets
    if len(files) > 1:
        listed = ", ".join(str(path) for path in files)
        raise UserError(f"{root}: none of {listed} is named train or val. Choose one, or rename them")
    return {"train": str(files[0])} if files else {}


def _find_voc_sets(root: Path) -> dict[str, str]:
    root = root / _VOC_YEAR if (root / _VOC_YEAR).is_dir() else root
    files = sorted((root / _VOC_LISTS).glob("*.txt"))
    names = {path.stem: path for path in files if path.stem in ("train", *TEST_NAMES)}
    if "train" not in names and (root / _VOC_LISTS / "trainval.txt").is_file():
        names["train"] = root / _VOC_LISTS / "trainval.txt"
    if sets := _choose_sets(names):
        return sets
    if len(files) == 1:
        return {"train": str(files[0])}
    if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir():
        listing = root / _VOC_LISTS / "train.txt"
        raise UserError(f"{listing}: does not exist. Write it: a line for each image, which is its name without suffix")
    return {}


def _find_yolo_sets(class_file: Path) -> dict[str, str]:
    values = read_yaml(class_file)
    chosen = [next((name for name in names if values.get(name)), None) for names in (TRAIN_NAMES, TEST_NAMES)]
    return _choose_sets({name: _resolve_yolo_folder(class_file, values, name) for name in chosen if name is not None})


def _find_label_sets(root: Path) -> dict[str, str]:
    """Return the sets of YOLO's format that no data.yaml names, by the names of their directories."""
    names = (*TRAIN_NAMES, *TEST_NAMES)
    folders = {name: [root / "images" / name, root / name / "images", root / name] for name in names}
    found = {name: path for name, paths in folders.items() for path in paths[::-1] if is_yolo_folder(path)}
    images = root / "images"
    return _choose_sets(found) or ({"train": str(images)} if is_yolo_folder(images) else {})


def _resolve_yolo_folder(class_file: Path, values: Mapping[str, object], name: str) -> Path:
    """Return the directory of a set; `../train/images`, as Roboflow writes, is meant from the yaml's directory too."""
    root = class_file.parent / str(values.get("path") or "")
    value = values[name]
    if not isinstance(value, str):
        raise UserError(f"{class_file}: {name} is {value!r} (expected a directory of images). Give one")
    candidates = [root / value, root / value.removeprefix("../"), class_file.parent / value]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(f"{class_file}: {name} is {value!r}, but {candidates[0]} is not a directory of images. Correct it")


def _choose_sets(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the training and the test set of several by name."""
    found = {"train": _find_named(paths, TRAIN_NAMES), "test": _find_named(paths, TEST_NAMES)}
    return {name: str(path) for name, path in found.items() if path is not None}


def _find_named(paths: Mapping[str, Path], names: tuple[str, ...]) -> Path | None:
    """Return the first path whose name has one of some words: `val` is in instances_val2017, but not in interval."""
    for name in names:
        for text, path in paths.items():
            if re.search(rf"(?<![a-z]){name}(?![a-z])", text.lower()):
                return path
    return None
