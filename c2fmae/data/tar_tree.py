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
from c2fmae.data.problems import Problem, refuse
from c2fmae.data.shards import ShardScenes
from c2fmae.data.stored import PHOTO_SUFFIXES
from c2fmae.data.tar_index import INDEX_SUFFIX, ShardIndex, load_index, members_of, save_index, stamp_of

log = logging.getLogger(__name__)

TREE_SUFFIX = f".tree{INDEX_SUFFIX}"
_SUFFIXES = tuple(f".{suffix}" for suffix in PHOTO_SUFFIXES)
_BEHIND_SLASH = chr(ord("/") + 1)


class TarTree:
    """The files of a tar by their paths, in the order of these."""

    def __init__(self, tar: Path, index: ShardIndex) -> None:
        self.tar, self._index = tar, index

    @property
    def stamp(self) -> tuple[int, int]:
        """What changes when the tar does."""
        return self._index.stamp

    def folders(self, under: str = "") -> tuple[str, ...]:
        """Return the names of the folders right below one, sorted; those that hide, as `.git` does, are left out."""
        rows, found = self._rows(under), list[str]()
        skip, row = len(_prefix(under)), rows.start
        while row < rows.stop:
            name, slash, _ = self._index.keys[row][skip:].partition("/")
            if slash and not name.startswith("."):
                found.append(name)
            row = self._after(f"{_prefix(under)}{name}", row, rows.stop) if slash else row + 1
        return tuple(sorted(found))  # `a-b/` lies before `a/`, and `a` before `a-b`

    def files(self, under: str = "") -> list[str]:
        """Return the paths of all files below a folder, seen from there."""
        rows, skip = self._rows(under), len(_prefix(under))
        return [name[skip:] for name in self._index.keys[rows.start : rows.stop]]

    def scenes(self, under: str = "") -> "TarTreeScenes":
        """Return the photos below a folder of the tar; their labels are its folders, in the order of their names."""
        rows, where = self._rows(under), f"{self.tar}: {under}" if under else str(self.tar)
        photos, problems = dict[str, tuple[int, str]](), list[Problem]()
        for row, name in zip(rows, self.files(under), strict=True):
            key, suffix = os.path.splitext(name)  # noqa: PTH122 - a million of them
            if suffix.lower() not in _SUFFIXES or any(part.startswith(".") for part in name.split("/")):
                continue
            if key in photos:
                text = f"{where}: sample {key!r} has another picture, {key}{photos[key][1]}. Leave one out"
                problems.append(Problem(key, text))
            photos.setdefault(key, (row, suffix))
        if not photos:
            raise UserError(f"{where}: no photos in it. Expected CLASS/NAME.jpg")
        refuse(problems)
        keys = sorted(photos)
        classes = [key.rpartition("/")[0] for key in keys]
        label_of = {name: label for label, name in enumerate(sorted({*classes} - {""}))}
        labels = np.array([label_of.get(name, -1) for name in classes], np.int64)
        at = np.array([photos[key][0] for key in keys], np.int64)
        places = (self._index.offsets[at], self._index.sizes[at])
        index = ShardIndex(self.stamp, KeyList.of(keys), PHOTO_SUFFIXES[:1], *places, labels)
        info = DatasetInfo(granularities=("rgb",), labels=tuple(LabelInfo(name=name) for name in label_of))
        return TarTreeScenes(self.tar, index, info, under, KeyList.of(photos[key][1] for key in keys))

    def _rows(self, under: str) -> range:
        names = self._index.keys
        if not under:
            return range(len(names))
        start = bisect_left(names, f"{under}/")
        return range(start, self._after(under, start, len(names)))

    def _after(self, folder: str, start: int, stop: int) -> int:
        return bisect_left(self._index.keys, folder + _BEHIND_SLASH, start, stop)


class TarTreeScenes(ShardScenes):
    """Photos of a tar by their paths without suffix, in the order of these."""

    def __init__(self, tar: Path, index: ShardIndex, info: DatasetInfo, under: str, suffixes: KeyList) -> None:
        super().__init__([tar], [index], info)
        self._where, self._suffixes = f"{tar}: {_prefix(under)}", suffixes

    def where(self, index: int, name: str) -> str:  # noqa: ARG002 - there is nothing but photos
        """Return the tar and the path in it."""
        return f"{self._where}{self.keys[index]}{self._suffixes[index]}"


def open_tar_tree(tar: Path) -> TarTree:
    """Return the files of a tar, by the index beside it, which is made now if there is none that fits."""
    try:
        stamp = stamp_of(tar)
    except OSError as error:
        raise UserError(f"{tar}: cannot be opened: {error.strerror}. Check the path") from error
    path = tar.with_name(f"{tar.name}{TREE_SUFFIX}")
    index = load_index(path, stamp)
    if index is None:
        log.info("indexing %s: once, it is kept as %s", tar, path.name)
        index = _scan(tar)
        refuse(index.problems)
        save_index(index, path)
    return TarTree(tar, index)


def _scan(tar: Path) -> ShardIndex:
    """Read through a tar's headers."""
    problems: list[Problem] = []
    found: dict[str, tuple[int, int]] = {}
    try:
        with tar.open("rb") as stream:
            stamp = stamp_of(stream.fileno())
            for path, offset, size in members_of(tar, stream, stamp[0], problems):
                name = str(path)
                if not is_utf8(name) or "\n" in name:
                    problems.append(Problem(None, f"{tar}: member {name!r} has no plain UTF-8 name. Pack it anew"))
                elif name in found:
                    problems.append(Problem(None, f"{tar}: member '{name}' is there twice. Copy or pack it again"))
                found[name] = (offset, size)
    except OSError as error:
        raise UserError(f"{tar}: cannot be read: {error.strerror}. Check its disk and rights") from error
    names = sorted(found) if not problems else []
    places = np.array([found[name] for name in names], np.int64).reshape(-1, 2)
    offsets, sizes = (np.ascontiguousarray(places[:, i : i + 1]) for i in (0, 1))
    no_labels = np.full(len(names), -1, np.int64)
    return ShardIndex(stamp, KeyList.of(names), ("file",), offsets, sizes, no_labels, tuple(problems))


def _prefix(folder: str) -> str:
    return f"{folder}/" if folder else ""
