"""What is odd about a folder of class folders, by names and counts, and by a look at a few of its photos."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from c2fmae.core.errors import UserError
from c2fmae.data import Scenes
from c2fmae.data.stored import PHOTO_SUFFIXES
from c2fmae.data.suites.cells import count_note, labels_of_folders, numbered
from c2fmae.data.suites.class_check import other_classes
from c2fmae.data.suites.file_tree import Place
from c2fmae.data.suites.official import OFFICIAL

_SUFFIXES = tuple(f".{suffix}" for suffix in PHOTO_SUFFIXES)
_NAMED = 5  # of what there is too much of to name all


@dataclass
class Contents:
    """The files of a folder of class folders, by what they are."""

    photos: Counter[str] = field(default_factory=Counter)
    """By class folder."""
    stray: list[str] = field(default_factory=list)
    """Photos in no class folder."""
    nested: set[str] = field(default_factory=set)
    """Folders inside class folders."""
    others: list[str] = field(default_factory=list)
    """Files in class folders that are no photos by their names."""
    junk: list[str] = field(default_factory=list)
    """What macOS leaves."""


def contents_of(files: Iterable[str]) -> Contents:
    """Sort the paths of files by what they are; what hides, and texts beside the class folders, are let be."""
    found = Contents()
    for path in files:
        folder, _, name = path.rpartition("/")
        is_photo = name.lower().endswith(_SUFFIXES)
        if name.startswith("._") or name == ".DS_Store" or path.startswith("__MACOSX/"):
            found.junk.append(path)
        elif name.startswith(".") or path.startswith(".") or "/." in path:
            continue
        elif "/" in folder:
            found.nested.add(folder)
        elif folder and is_photo:
            found.photos[folder] += 1
        elif folder:
            found.others.append(path)
        elif is_photo:
            found.stray.append(path)
    return found


def odd_files(kind: str, folders: Sequence[str], found: Contents) -> list[str]:
    """Return a sentence for each way in which the files are not those of a set."""
    official = OFFICIAL.get(kind)
    wnids, per_class = (official.wnids(), official.per_class) if official else ((), None)
    missing = [wnid for wnid in wnids if wnid not in folders]
    empty = [name for name in folders if not found.photos[name]]
    other = [f"{name} ({count})" for name, count in sorted(found.photos.items()) if per_class not in (None, count)]
    sentences = [
        other_classes(kind, labels_of_folders(folders)),
        _listed(f"{len(missing)} of {len(wnids):,} class folders missing", missing),
        _listed(f"{numbered(len(empty), 'class folder', 'class folders')} without photos", empty),
        _listed(f"{numbered(len(other), 'class', 'classes')} with another number of photos than {per_class}", other),
        count_note(found.photos.total(), official.images if official else None),
        _listed(f"{numbered(len(found.nested), 'folder', 'folders')} inside class folders", sorted(found.nested)),
        _listed(f"{numbered(len(found.stray), 'photo', 'photos')} in no class folder", found.stray),
        _listed(numbered(len(found.others), "file that is no photo", "files that are no photos"), found.others),
        _listed(
            numbered(
                len(found.junk),
                "file that macOS left, which is passed over",
                "files that macOS left, which are passed over",
            ),
            found.junk,
        ),
    ]
    return [sentence for sentence in sentences if sentence]


def odd_photos(place: Place, under: str, count: int, size: tuple[int, int] | None) -> tuple[list[str], int]:
    """Return what is odd about some photos, spread evenly, and how many were looked at; `size` is height and width."""
    try:
        return look_at(place.scenes(under), count, size)
    except UserError as error:  # two photos of one name, or none at all
        return [str(error)], 0


def look_at(scenes: Scenes, count: int, size: tuple[int, int] | None = None) -> tuple[list[str], int]:
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
    odd = [f"{len(broken)} of {count} photos looked at cannot be read. {broken[0]}"] if broken else []
    if other and size:
        odd.append(_named(f"{len(other)} of {count} photos looked at are not {size[1]}×{size[0]}", other))
    return odd, count


def _listed(what: str, names: Sequence[str]) -> str | None:
    return _named(what, names) if names else None


def _named(what: str, names: Collection[str]) -> str:
    more = ", …" if len(names) > _NAMED else ""
    return f"{what}: {', '.join(islice(names, _NAMED))}{more}"
