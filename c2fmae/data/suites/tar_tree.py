"""Class directories inside a tar, as benchmarks are distributed, with random access to images without extraction.

Unlike in a shard, every image is a separate sample, its name may contain dots, and its class is its directory. The
index of NAME.tar is built once and saved beside it as NAME.tar.tree.index.
"""

import os
from bisect import bisect_left
from pathlib import Path

import numpy as np

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file
from c2fmae.core.labels import LabelInfo
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList, is_utf8
from c2fmae.data.problems import Problem, raise_first_problem
from c2fmae.data.shards import ShardScenes
from c2fmae.data.stored import DOTTED_IMAGE_SUFFIXES, IMAGE_SUFFIXES
from c2fmae.data.suites.dir_tree import is_ignored_dir
from c2fmae.data.tar_index import INDEX_SUFFIX, ShardIndex, file_fingerprint, load_or_build_index
from c2fmae.data.tar_members import list_tar_members

TREE_SUFFIX = f".tree{INDEX_SUFFIX}"
_AFTER_SLASH = chr(ord("/") + 1)


class TarTree:
    """The files of a tar as a `FileTree`, sorted by path."""

    def __init__(self, tar: Path, index: ShardIndex) -> None:
        self.tar, self._index = tar, index

    def describe_location(self, subdir: str = "") -> str:
        """Return the path of the tar, and the directory in it."""
        return f"{self.tar}: {subdir}" if subdir else str(self.tar)

    def list_dirs(self, subdir: str = "") -> tuple[str, ...]:
        """Return the sorted names of the directories in a directory, without those that `is_ignored_dir`."""
        rows, names = self._rows_below(subdir), list[str]()
        prefix_length, row = len(_with_slash(subdir)), rows.start
        while row < rows.stop:
            name, slash, _ = self._index.keys[row][prefix_length:].partition("/")
            if slash and not is_ignored_dir(name):
                names.append(name)
            row = self._first_row_after(f"{_with_slash(subdir)}{name}", row, rows.stop) if slash else row + 1
        return tuple(sorted(names))  # paths sort `a-b/` before `a/`, names `a` before `a-b`

    def list_files(self, subdir: str = "") -> list[str]:
        """Return the sorted paths of all files below a directory, relative to it."""
        rows, prefix_length = self._rows_below(subdir), len(_with_slash(subdir))
        return [name[prefix_length:] for name in self._index.keys[rows.start : rows.stop]]

    def open_images(self, subdir: str = "") -> "TarTreeScenes":
        """Open the images below a directory; labels number its subdirectories in the order of their names."""
        rows, location = self._rows_below(subdir), self.describe_location(subdir)
        images, problems = dict[str, tuple[int, str]](), list[Problem]()
        for row, name in zip(rows, self.list_files(subdir), strict=True):
            key, suffix = os.path.splitext(name)  # noqa: PTH122 - a million of them
            if suffix.lower() not in DOTTED_IMAGE_SUFFIXES or any(part.startswith(".") for part in name.split("/")):
                continue
            if key in images:
                text = f"{location}: sample {key!r} has another image, {key}{images[key][1]}. Remove one"
                problems.append(Problem(key, text))
            images.setdefault(key, (row, suffix))
        if not images:
            raise UserError(f"{location}: no images (expected CLASS/NAME.jpg). Check the path")
        raise_first_problem(problems)
        keys = sorted(images)
        classes = [key.rpartition("/")[0] for key in keys]
        label_by_class = {name: label for label, name in enumerate(sorted({*classes} - {""}))}
        labels = np.array([label_by_class.get(name, -1) for name in classes], np.int64)
        image_rows = np.array([images[key][0] for key in keys], np.int64)
        byte_ranges = (self._index.offsets[image_rows], self._index.sizes[image_rows])
        index = ShardIndex(self._index.fingerprint, KeyList.from_names(keys), IMAGE_SUFFIXES[:1], *byte_ranges, labels)
        info = DatasetInfo(granularities=("rgb",), labels=tuple(LabelInfo(name=name) for name in label_by_class))
        return TarTreeScenes(self.tar, index, info, subdir, KeyList.from_names(images[key][1] for key in keys))

    def compute_fingerprint(self, subdir: str = "") -> str:
        """Return size and modification time of the tar."""
        return f"{subdir} {self._index.fingerprint}"

    def _rows_below(self, subdir: str) -> range:
        names = self._index.keys
        if not subdir:
            return range(len(names))
        start = bisect_left(names, f"{subdir}/")
        return range(start, self._first_row_after(subdir, start, len(names)))

    def _first_row_after(self, folder: str, start: int, stop: int) -> int:
        return bisect_left(self._index.keys, folder + _AFTER_SLASH, start, stop)


class TarTreeScenes(ShardScenes):
    """Images of a tar; keys are paths without suffix, sorted."""

    def __init__(self, tar: Path, index: ShardIndex, info: DatasetInfo, subdir: str, suffixes: KeyList) -> None:
        super().__init__([tar], [index], info)
        self._location_prefix, self._suffixes = f"{tar}: {_with_slash(subdir)}", suffixes

    def describe_location(self, index: int, name: str) -> str:  # noqa: ARG002 - rgb is the only granularity
        """Return the tar and the path in it."""
        return f"{self._location_prefix}{self.keys[index]}{self._suffixes[index]}"


def open_tar_tree(tar: Path) -> TarTree:
    """Open a tar by the index beside it, which is built if it is missing or outdated."""
    index = load_or_build_index(tar, _scan_tar, TREE_SUFFIX)
    raise_first_problem(index.problems)
    return TarTree(tar, index)


def _scan_tar(tar: Path) -> ShardIndex:
    """Build the index of a tar from its headers."""
    problems: list[Problem] = []
    members: dict[str, tuple[int, int]] = {}
    with open_file(tar) as file:
        fingerprint = file_fingerprint(file.fileno())
        for name, _, offset, size in list_tar_members(tar, file, fingerprint[0], problems):
            if not is_utf8(name) or "\n" in name:
                text = f"{tar}: member {name!r} is not a UTF-8 name without line breaks. Rename it"
                problems.append(Problem(None, text))
            elif name in members:
                problems.append(Problem(None, f"{tar}: has member '{name}' twice. Copy or pack it again"))
            members[name] = (offset, size)
    names = sorted(members) if not problems else []
    byte_ranges = np.array([members[name] for name in names], np.int64).reshape(-1, 2)
    offsets, sizes = (np.ascontiguousarray(byte_ranges[:, i : i + 1]) for i in (0, 1))
    no_labels = np.full(len(names), -1, np.int64)
    return ShardIndex(fingerprint, KeyList.from_names(names), ("file",), offsets, sizes, no_labels, tuple(problems))


def _with_slash(folder: str) -> str:
    return f"{folder}/" if folder else ""
