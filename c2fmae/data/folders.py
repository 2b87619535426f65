"""Directory trees of images: a directory for each granularity, `images` and `masks`, or images without maps."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.files import read_file
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.labels import LabelInfo
from c2fmae.core.splits import TEST_NAMES, TRAIN_NAMES, find_splits
from c2fmae.data.class_dirs import map_dirs_to_labels
from c2fmae.data.dir_walk import walk_dirs
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList, is_utf8
from c2fmae.data.problems import Problem
from c2fmae.data.stored import DOTTED_IMAGE_SUFFIXES, StoredScenes, missing_granularity_problem, sort_coarse_to_fine

log = logging.getLogger(__name__)

MASK_DIRS = {"rgb": "images", "semantic": "masks"}
"""Directories of a common layout of segmentation data, by granularity."""


class FolderScenes(StoredScenes):
    """Scenes of a directory for each granularity, with the same file names in all of them."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        info: DatasetInfo,
        keys: KeyList,
        labels: Int64[np.ndarray, " samples"],
        suffixes: Mapping[str, KeyList],
    ) -> None:
        super().__init__(info, keys, labels)
        self._folders, self._suffixes = folders, suffixes

    def describe_location(self, index: int, name: str) -> str:
        """Return the path of a file."""
        return f"{self._folders[name]}/{self.keys[index]}{self._suffixes[name][index]}"

    def read_map_bytes(self, index: int) -> dict[str, bytes]:
        """Read the files; they are opened each time, so that worker processes share no file position."""
        return {name: read_file(self.describe_location(index, name)) for name in self.info.granularities}


def open_folder_tree(
    root: Path, granularities: Sequence[str] | None, folders: Mapping[str, str]
) -> tuple[FolderScenes | None, tuple[Problem, ...]]:
    """Open the complete samples of a tree, and list the problems of the others."""
    for name in folders:
        GRANULARITIES.get(name)
    info_on_disk = _read_info(root)
    if not folders and not any((root / name).is_dir() for name in GRANULARITIES) and _has_masks(root):
        folders = MASK_DIRS
        if splits := find_splits(root / MASK_DIRS["rgb"]):
            first = next(iter(splits))
            raise UserError(
                f"{root}: its directories images and masks contain several sets: {', '.join(splits)}. Move them to"
                f" {first}/images, {first}/masks and so on"
            )
    dirs = {name: root / folders.get(name, name) for name in GRANULARITIES}
    existing_dirs = {name: path for name, path in dirs.items() if path.is_dir()}
    for name in folders:
        if name not in existing_dirs:
            raise UserError(f"{dirs[name]}: does not exist, but is given as the directory of {name}. Check the name")
    if not existing_dirs:
        if splits := find_splits(root):
            raise UserError(
                f"{root}: contains several sets: {', '.join(splits)}. Choose one, as in {next(iter(splits.values()))}"
            )
        existing_dirs = {"rgb": root}  # images without maps, perhaps in class directories
        log.info("%s: has no directory rgb, semantic or instance; all files with an image suffix are read as rgb", root)
    if granularities is None:
        is_declared = info_on_disk is not None and "granularities" in info_on_disk.model_fields_set
        granularities = info_on_disk.granularities if info_on_disk and is_declared else tuple(existing_dirs)
    granularities = sort_coarse_to_fine(granularities)
    problems: list[Problem] = []
    suffixes_by_key = {
        name: find_images(existing_dirs[name], problems) if name in existing_dirs else {} for name in granularities
    }
    if not any(suffixes_by_key.values()):
        text = f"{root}: contains no scenes (expected shards *.tar, or images in {', '.join(granularities)})"
        return None, (*problems, Problem(None, f"{text}. Check the path"))
    problem_keys = {problem.key for problem in problems}
    all_keys = set[str].union(*map(set, suffixes_by_key.values())) - problem_keys
    for name in granularities:
        if not suffixes_by_key[name]:
            if name == "semantic" and (root / MASK_DIRS["rgb"]).is_dir():
                text = f"{root}: has a directory {MASK_DIRS['rgb']}, but none named {MASK_DIRS['semantic']}"
                return None, (*problems, Problem(None, f"{text} (expected the semantic maps there). Rename or add it"))
            return None, (*problems, missing_granularity_problem(str(root), name, granularities))
        problems += [
            Problem(key, f"{root}: sample {key!r} has no {folders.get(name, name)}/{key}. Add it, or remove the sample")
            for key in sorted(all_keys - suffixes_by_key[name].keys())
        ]
    complete_keys = sorted(all_keys.intersection(*suffixes_by_key.values()))
    # Trees hold no objects, only packs do.
    changes = {"granularities": granularities, "object_classes": ()}
    info = (info_on_disk or DatasetInfo()).model_copy(update=changes)
    classes = [key.rpartition("/")[0] for key in complete_keys]
    if not info.labels:
        names = sorted({key.rpartition("/")[0] for key in all_keys} - {""})
        info = info.model_copy(update={"labels": tuple(LabelInfo(name=name) for name in names)})
    labels = _labels_from_dirs(root, classes, info, problems)
    suffixes = {name: KeyList.from_names(suffixes_by_key[name][key] for key in complete_keys) for name in granularities}
    used_dirs = {name: existing_dirs[name] for name in granularities}
    return FolderScenes(used_dirs, info, KeyList.from_names(complete_keys), labels, suffixes), tuple(problems)


def _has_masks(root: Path) -> bool:
    return all((root / name).is_dir() for name in MASK_DIRS.values())


def _read_info(root: Path) -> DatasetInfo | None:
    """Return the description of a tree; sets such as train and val may share that of the directory around them."""
    info = DatasetInfo.read_from_dir(root)
    absolute = root.absolute()  # "." has neither a name nor a parent
    is_split = absolute.name in (*TRAIN_NAMES, *TEST_NAMES)
    return DatasetInfo.read_from_dir(absolute.parent) if info is None and is_split else info


def _labels_from_dirs(
    root: Path, classes: Sequence[str], info: DatasetInfo, problems: list[Problem]
) -> Int64[np.ndarray, " samples"]:
    """Return the label of each sample by its class directory; -1 for a sample outside of class directories."""
    label_by_dir = {"": -1, **map_dirs_to_labels(info.labels)}
    for name in sorted({*classes} - label_by_dir.keys()):
        text = f"{root}: class directory {name!r} is not a label in dataset.json."
        problems.append(Problem(None, f"{text} {did_you_mean(name, label_by_dir) or 'Add it there'}"))
    return np.array([label_by_dir.get(name, -1) for name in classes], np.int64)


def find_images(folder: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the suffix of every image below a directory, by its path without suffix."""
    suffix_by_key: dict[str, str] = {}

    def report_unlisted(error: OSError) -> None:  # os.walk by itself skips directories that it may not read
        problems.append(Problem(None, f"{error.filename}: cannot be listed: {error.strerror}. Fix its permissions"))

    def report_repeat(path: str, first: str) -> None:
        problems.append(Problem(None, f"{path}: is the same directory as {first}. Remove the link"))

    for path, folders, files in walk_dirs(folder, report_error=report_unlisted, report_repeat=report_repeat):
        prefix = os.path.relpath(path, folder)
        prefix = "" if prefix == "." else f"{Path(prefix).as_posix()}/"
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        problems += [
            Problem(None, f"{path}/{name}: is a directory with the suffix of an image. Rename or remove it")
            for name in folders
            if name.lower().endswith(DOTTED_IMAGE_SUFFIXES)
        ]
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a million of them
            if suffix.lower() not in DOTTED_IMAGE_SUFFIXES or name.startswith("."):
                continue
            key = prefix + stem
            if "\n" in key or not is_utf8(key):
                problems.append(Problem(None, f"{path}: {name!r} is not a UTF-8 name without line breaks. Rename it"))
            elif key in suffix_by_key:
                text = f"{path}/{name}: sample {key!r} has another image, {stem}{suffix_by_key[key]}. Remove one"
                problems.append(Problem(key, text))
            else:
                suffix_by_key[key] = suffix
    return suffix_by_key
