"""A folder tree inside a tar, as the archives of benchmarks come: any photo of it one read away, nothing unpacked.

Other than in a shard, every photo is a sample of its own, its name may hold several dots, and its class is the folder
that it lies in. The index of NAME.tar is made once and kept beside it, as NAME.tar.tree.index.
"""

import logging
import os
from bisect import bisect_left
from pathlib import Path

import numpy as np

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList, is_utf8
from c2fmae.data.problems import Problem, raise_first_problem
from c2fmae.data.shards import ShardScenes
from c2fmae.data.stored import IMAGE_SUFFIXES
from c2fmae.data.tar_index import INDEX_SUFFIX, ShardIndex, file_fingerprint, list_tar_members, load_index, save_index

log = logging.getLogger(__name__)

TREE_SUFFIX = f".tree{INDEX_SUFFIX}"
_DOTTED_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
_AFTER_SLASH = chr(ord("/") + 1)


class TarTree:
    """The files of a tar by their paths, in the order of these."""

    def __init__(self, tar: Path, index: ShardIndex) -> None:
        self.tar, self._index = tar, index

    @property
    def fingerprint(self) -> tuple[int, int]:
        """What changes when the tar does."""
        return self._index.fingerprint

    def list_dirs(self, subdir: str = "") -> tuple[str, ...]:
        """Return the names of the folders right below one, sorted; those that hide, as `.git` does, are left out."""
        rows, found = self._rows_below(subdir), list[str]()
        skip, row = len(_with_slash(subdir)), rows.start
        while row < rows.stop:
            name, slash, _ = self._index.keys[row][skip:].partition("/")
            if slash and not name.startswith("."):
                found.append(name)
            row = self._first_row_after(f"{_with_slash(subdir)}{name}", row, rows.stop) if slash else row + 1
        return tuple(sorted(found))  # `a-b/` lies before `a/`, and `a` before `a-b`

    def list_files(self, subdir: str = "") -> list[str]:
        """Return the paths of all files below a folder, seen from there."""
        rows, skip = self._rows_below(subdir), len(_with_slash(subdir))
        return [name[skip:] for name in self._index.keys[rows.start : rows.stop]]

    def open_images(self, subdir: str = "") -> "TarTreeScenes":
        """Return the photos below a folder of the tar; their labels are its folders, in the order of their names."""
        rows, location = self._rows_below(subdir), f"{self.tar}: {subdir}" if subdir else str(self.tar)
        images, problems = dict[str, tuple[int, str]](), list[Problem]()
        for row, name in zip(rows, self.list_files(subdir), strict=True):
            key, suffix = os.path.splitext(name)  # noqa: PTH122 - a million of them
            if suffix.lower() not in _DOTTED_SUFFIXES or any(part.startswith(".") for part in name.split("/")):
                continue
            if key in images:
                text = f"{location}: sample {key!r} has another picture, {key}{images[key][1]}. Leave one out"
                problems.append(Problem(key, text))
            images.setdefault(key, (row, suffix))
        if not images:
            raise UserError(f"{location}: no photos in it. Expected CLASS/NAME.jpg")
        raise_first_problem(problems)
        keys = sorted(images)
        classes = [key.rpartition("/")[0] for key in keys]
        label_of = {name: label for label, name in enumerate(sorted({*classes} - {""}))}
        labels = np.array([label_of.get(name, -1) for name in classes], np.int64)
        rows_in_index = np.array([images[key][0] for key in keys], np.int64)
        places = (self._index.offsets[rows_in_index], self._index.sizes[rows_in_index])
        index = ShardIndex(self.fingerprint, KeyList.from_names(keys), IMAGE_SUFFIXES[:1], *places, labels)
        info = DatasetInfo(granularities=("rgb",), labels=tuple(LabelInfo(name=name) for name in label_of))
        return TarTreeScenes(self.tar, index, info, subdir, KeyList.from_names(images[key][1] for key in keys))

    def _rows_below(self, subdir: str) -> range:
        names = self._index.keys
        if not subdir:
            return range(len(names))
        start = bisect_left(names, f"{subdir}/")
        return range(start, self._first_row_after(subdir, start, len(names)))

    def _first_row_after(self, folder: str, start: int, stop: int) -> int:
        return bisect_left(self._index.keys, folder + _AFTER_SLASH, start, stop)


class TarTreeScenes(ShardScenes):
    """Photos of a tar by their paths without suffix, in the order of these."""

    def __init__(self, tar: Path, index: ShardIndex, info: DatasetInfo, subdir: str, suffixes: KeyList) -> None:
        super().__init__([tar], [index], info)
        self._location_prefix, self._suffixes = f"{tar}: {_with_slash(subdir)}", suffixes

    def describe_location(self, index: int, name: str) -> str:  # noqa: ARG002 - there is nothing but photos
        """Return the tar and the path in it."""
        return f"{self._location_prefix}{self.keys[index]}{self._suffixes[index]}"


def open_tar_tree(tar: Path) -> TarTree:
    """Return the files of a tar, by the index beside it, which is made now if there is none that fits."""
    try:
        stamp = file_fingerprint(tar)
    except OSError as error:
        raise UserError(f"{tar}: cannot be opened: {error.strerror}. Check the path") from error
    path = tar.with_name(f"{tar.name}{TREE_SUFFIX}")
    index = load_index(path, stamp)
    if index is None:
        log.info("indexing %s: once, it is kept as %s", tar, path.name)
        index = _scan_tar(tar)
        raise_first_problem(index.problems)
        save_index(index, path)
    return TarTree(tar, index)


def _scan_tar(tar: Path) -> ShardIndex:
    """Read through a tar's headers."""
    problems: list[Problem] = []
    found: dict[str, tuple[int, int]] = {}
    try:
        with tar.open("rb") as stream:
            stamp = file_fingerprint(stream.fileno())
            for path, offset, size in list_tar_members(tar, stream, stamp[0], problems):
                name = str(path)
                if not is_utf8(name) or "\n" in name:
                    problems.append(Problem(None, f"{tar}: member {name!r} has no plain UTF-8 name. Pack it anew"))
                elif name in found:
                    problems.append(Problem(None, f"{tar}: member '{name}' is there twice. Copy or pack it again"))
                found[name] = (offset, size)
    except OSError as error:
        raise UserError(f"{tar}: cannot be read: {error.strerror}. Check its disk and rights") from error
    names = sorted(found) if not problems else []
    byte_ranges = np.array([found[name] for name in names], np.int64).reshape(-1, 2)
    offsets, sizes = (np.ascontiguousarray(byte_ranges[:, i : i + 1]) for i in (0, 1))
    no_labels = np.full(len(names), -1, np.int64)
    return ShardIndex(stamp, KeyList.from_names(names), ("file",), offsets, sizes, no_labels, tuple(problems))


def _with_slash(folder: str) -> str:
    return f"{folder}/" if folder else ""
