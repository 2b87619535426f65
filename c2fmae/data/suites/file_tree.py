"""Where a set's class folders lie: a folder or a tar, looked at alike."""

import os
import tarfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from c2fmae.core.errors import UserError
from c2fmae.core.labels import is_wnid
from c2fmae.data import Scenes
from c2fmae.data.folders import open_tree
from c2fmae.data.problems import refuse
from c2fmae.data.tar_tree import TarTree, open_tar_tree

_LOOKED_AT = 16  # members; a shard's first samples are among them


@runtime_checkable
class Place(Protocol):
    """A folder tree, wherever it lies; paths in it are written with slashes."""

    def where(self, under: str = "") -> str:
        """Return what messages call a folder of it."""

    def folders(self, under: str = "") -> tuple[str, ...]:
        """Return the names of the folders right below one, sorted, those that `is_passed_over` left out."""

    def files(self, under: str = "") -> list[str]:
        """Return the paths of all files below a folder, seen from there, sorted."""

    def scenes(self, under: str = "") -> Scenes:
        """Return the photos below a folder, their labels being its folders in the order of their names."""

    def stamp(self, under: str = "") -> str:
        """Return what changes when photos are added or removed below a folder; cheap."""


@dataclass(frozen=True)
class FolderPlace:
    """Folders on disk."""

    root: Path

    def where(self, under: str = "") -> str:
        """Return its path."""
        return str(self.root / under)

    def folders(self, under: str = "") -> tuple[str, ...]:
        """Ask the file system."""
        try:
            with os.scandir(self.root / under) as entries:
                return tuple(sorted(e.name for e in entries if e.is_dir() and not is_passed_over(e.name)))
        except OSError as error:
            raise UserError(f"{self.where(under)}: cannot be listed: {error.strerror}. Check the path") from error

    def files(self, under: str = "") -> list[str]:
        """Walk through it."""
        top, found = self.where(under), list[str]()
        for folder, _, names in os.walk(top, followlinks=True):
            below = os.path.relpath(folder, top)
            prefix = "" if below == "." else f"{Path(below).as_posix()}/"
            found += [prefix + name for name in names]
        return sorted(found)

    def scenes(self, under: str = "") -> Scenes:
        """Open the photos as any folder of photos; tars that lie beside them are not asked."""
        scenes, problems = open_tree(self.root / under, ("rgb",), {"rgb": "."})
        refuse(problems)
        if scenes is None:
            raise UserError(f"{self.where(under)}: no photos in it. Expected CLASS/NAME.jpg")
        return scenes

    def stamp(self, under: str = "") -> str:
        """Return when each class folder changed."""
        root = self.root / under
        return " ".join(f"{name}:{(root / name).stat().st_mtime_ns}" for name in self.folders(under))


@dataclass(frozen=True)
class TarPlace:
    """Folders in a tar."""

    tree: TarTree

    def where(self, under: str = "") -> str:
        """Return the path of the tar, and that in it."""
        return f"{self.tree.tar}: {under}" if under else str(self.tree.tar)

    def folders(self, under: str = "") -> tuple[str, ...]:
        """Ask the tar's index."""
        return tuple(name for name in self.tree.folders(under) if not is_passed_over(name))

    def files(self, under: str = "") -> list[str]:
        """Ask the tar's index."""
        return self.tree.files(under)

    def scenes(self, under: str = "") -> Scenes:
        """Open the photos where they lie in the tar."""
        return self.tree.scenes(under)

    def stamp(self, under: str = "") -> str:
        """Return size and time of change of the tar."""
        return f"{under} {self.tree.stamp}"


def is_passed_over(name: str) -> bool:
    """Return whether a folder is no class's: it hides, or macOS packed it beside what was asked for.

    >>> is_passed_over(".git"), is_passed_over("__MACOSX"), is_passed_over("cat")
    (True, True, False)
    """
    return name.startswith(".") or name == "__MACOSX"


def place_at(path: Path) -> Place:
    """Return a folder, or a tar as one."""
    if path.is_dir():
        return FolderPlace(path)
    if path.suffix == ".zip":
        raise UserError(f"{path}: a zip, of which no photo can be read by itself. Unpack it: unzip {path}")
    return TarPlace(open_tar_tree(path))


def is_shard(path: Path) -> bool:
    """Whether a tar is a shard of labelled samples (KEY.jpg, KEY.cls), seen by its first members."""
    try:
        with tarfile.open(path, "r:") as tar:
            return any(member.name.endswith(".cls") for member in islice(tar, _LOOKED_AT))
    except (tarfile.TarError, OSError):  # whoever opens it says what it is
        return False


def below_wrapping(place: Place) -> str:
    """Return the folder that holds the class folders: the archives of some sets have one of their own around them."""
    under = ""
    while len(names := place.folders(under)) == 1 and not is_wnid(names[0]):
        inner = f"{under}/{names[0]}".lstrip("/")
        if not place.folders(inner):  # one class alone
            break
        under = inner
    return under
