"""What is odd about a folder of class folders, by names and counts, and by a look at a few of its photos."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from c2fmae.core.errors import UserError
from c2fmae.data import Scenes
from c2fmae.data.stored import IMAGE_SUFFIXES
from c2fmae.data.suites.cells import describe_count_difference, dir_names_to_labels, format_count
from c2fmae.data.suites.class_check import describe_unexpected_classes
from c2fmae.data.suites.file_tree import FileTree
from c2fmae.data.suites.official import OFFICIAL_SETS

_DOTTED_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
_MAX_LISTED = 5  # of what there is too much of to name all


@dataclass
class ClassDirContents:
    """The files of a folder of class folders, by what they are."""

    images: Counter[str] = field(default_factory=Counter)
    """By class folder."""
    unclassified_images: list[str] = field(default_factory=list)
    """Photos in no class folder."""
    nested_dirs: set[str] = field(default_factory=set)
    """Folders inside class folders."""
    other_files: list[str] = field(default_factory=list)
    """Files in class folders that are no photos by their names."""
    macos_files: list[str] = field(default_factory=list)
    """What macOS leaves."""


def classify_files(files: Iterable[str]) -> ClassDirContents:
    """Sort the paths of files by what they are; what hides, and texts beside the class folders, are let be."""
    found = ClassDirContents()
    for path in files:
        folder, _, name = path.rpartition("/")
        is_photo = name.lower().endswith(_DOTTED_SUFFIXES)
        if name.startswith("._") or name == ".DS_Store" or path.startswith("__MACOSX/"):
            found.macos_files.append(path)
        elif name.startswith(".") or path.startswith(".") or "/." in path:
            continue
        elif "/" in folder:
            found.nested_dirs.add(folder)
        elif folder and is_photo:
            found.images[folder] += 1
        elif folder:
            found.other_files.append(path)
        elif is_photo:
            found.unclassified_images.append(path)
    return found


def describe_unexpected_files(suite: str, folders: Sequence[str], contents: ClassDirContents) -> list[str]:
    """Return a sentence for each way in which the files are not those of a set."""
    official = OFFICIAL_SETS.get(suite)
    wnids, per_class = (official.wnids(), official.images_per_class) if official else ((), None)
    missing = [wnid for wnid in wnids if wnid not in folders]
    empty = [name for name in folders if not contents.images[name]]
    other = [f"{name} ({count})" for name, count in sorted(contents.images.items()) if per_class not in (None, count)]
    sentences = [
        describe_unexpected_classes(suite, dir_names_to_labels(folders)),
        _list_if_any(f"{len(missing)} of {len(wnids):,} class folders missing", missing),
        _list_if_any(f"{format_count(len(empty), 'class folder', 'class folders')} without photos", empty),
        _list_if_any(
            f"{format_count(len(other), 'class', 'classes')} with another number of photos than {per_class}", other
        ),
        describe_count_difference(contents.images.total(), official.num_images if official else None),
        _list_if_any(
            f"{format_count(len(contents.nested_dirs), 'folder', 'folders')} inside class folders",
            sorted(contents.nested_dirs),
        ),
        _list_if_any(
            f"{format_count(len(contents.unclassified_images), 'photo', 'photos')} in no class folder",
            contents.unclassified_images,
        ),
        _list_if_any(
            format_count(len(contents.other_files), "file that is no photo", "files that are no photos"),
            contents.other_files,
        ),
        _list_if_any(
            format_count(
                len(contents.macos_files),
                "file that macOS left, which is passed over",
                "files that macOS left, which are passed over",
            ),
            contents.macos_files,
        ),
    ]
    return [sentence for sentence in sentences if sentence]


def check_images_below(tree: FileTree, subdir: str, count: int, size: tuple[int, int] | None) -> tuple[list[str], int]:
    """Return what is odd about some photos, spread evenly, and how many were looked at; `size` is height and width."""
    try:
        return check_sampled_images(tree.open_images(subdir), count, size)
    except UserError as error:  # two photos of one name, or none at all
        return [str(error)], 0


def check_sampled_images(scenes: Scenes, count: int, size: tuple[int, int] | None = None) -> tuple[list[str], int]:
    """Return what is odd about some scenes' photos, spread evenly, and how many were looked at."""
    count = min(count, len(scenes))
    broken, other = list[str](), list[str]()
    for index in np.linspace(0, len(scenes), count, endpoint=False).astype(int).tolist():
        try:
            height, width = scenes[index].maps["rgb"].shape[-2:]
        except UserError as error:
            broken.append(str(error))
            continue
        if size not in (None, (height, width)):
            other.append(f"{scenes.keys[index]} ({width}×{height})")
    unexpected = [f"{len(broken)} of {count} photos looked at cannot be read. {broken[0]}"] if broken else []
    if other and size:
        unexpected.append(_list_some(f"{len(other)} of {count} photos looked at are not {size[1]}×{size[0]}", other))
    return unexpected, count


def _list_if_any(what: str, names: Sequence[str]) -> str | None:
    return _list_some(what, names) if names else None


def _list_some(what: str, names: Collection[str]) -> str:
    more = ", …" if len(names) > _MAX_LISTED else ""
    return f"{what}: {', '.join(islice(names, _MAX_LISTED))}{more}"
