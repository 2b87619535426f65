"""Sets of objects by the files of a directory: of COCO, YOLO or VOC."""

import re
from collections.abc import Mapping
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.splits import TEST_NAMES, TRAIN_NAMES, find_train_test
from c2fmae.core.yaml_file import read_yaml
from c2fmae.data.info import DATASET_FILE
from c2fmae.data.objects.yolo import find_class_file, find_label_folder
from c2fmae.data.stored import DOTTED_IMAGE_SUFFIXES

_ROBOFLOW_JSON = "_annotations.coco.json"
_VOC_LISTS = Path("ImageSets/Main")
_VOC_YEAR = Path("VOCdevkit/VOC2012")
_YAML_SUFFIXES = (".yaml", ".yml")


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
    if not path.is_dir() or (path / DATASET_FILE).exists() or any((path / name).is_dir() for name in GRANULARITIES):
        return {}
    if sets := _find_coco_sets(path) or _find_voc_sets(path):
        return sets
    class_file = find_class_file(path, num_levels=0)
    return _find_yolo_sets(class_file) if class_file is not None else {}


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
    files = path.glob("*.txt") if find_class_file(path) is not None else ()
    return any(file.with_suffix(suffix).exists() for file in files for suffix in DOTTED_IMAGE_SUFFIXES)


def _find_coco_sets(root: Path) -> dict[str, str]:
    files = sorted(
        (root / "annotations").glob("*.json"), key=lambda path: (not path.name.startswith("instances"), path)
    )
    names = {path.stem: path for path in files} | {
        path.parent.name: path for path in sorted(root.glob(f"*/{_ROBOFLOW_JSON}"))
    }
    return _choose_sets(names)


def _find_voc_sets(root: Path) -> dict[str, str]:
    folder = (root / _VOC_YEAR if (root / _VOC_YEAR).is_dir() else root) / _VOC_LISTS
    names = {name: folder / f"{name}.txt" for name in ("train", *TEST_NAMES) if (folder / f"{name}.txt").is_file()}
    if "train" not in names and (folder / "trainval.txt").is_file():
        names["train"] = folder / "trainval.txt"
    return _choose_sets(names)


def _find_yolo_sets(class_file: Path) -> dict[str, str]:
    values = read_yaml(class_file)
    chosen = [next((name for name in names if values.get(name)), None) for names in (TRAIN_NAMES, TEST_NAMES)]
    return _choose_sets({name: _resolve_yolo_folder(class_file, values, name) for name in chosen if name is not None})


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
