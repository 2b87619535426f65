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
from c2fmae.data.folders import open_folder_tree
from c2fmae.data.problems import raise_first_problem
from c2fmae.data.tar_tree import TarTree, open_tar_tree

_NUM_PEEKED_MEMBERS = 16  # members; a shard's first samples are among them


@runtime_checkable
class FileTree(Protocol):
    """A folder tree, wherever it lies; paths in it are written with slashes."""

    def describe_location(self, subdir: str = "") -> str:
        """Return what messages call a folder of it."""

    def list_dirs(self, subdir: str = "") -> tuple[str, ...]:
        """Return the names of the folders right below one, sorted, those that `is_ignored_dir` left out."""

    def list_files(self, subdir: str = "") -> list[str]:
        """Return the paths of all files below a folder, seen from there, sorted."""

    def open_images(self, subdir: str = "") -> Scenes:
        """Return the photos below a folder, their labels being its folders in the order of their names."""

    def compute_fingerprint(self, subdir: str = "") -> str:
        """Return what changes when photos are added or removed below a folder; cheap."""


@dataclass(frozen=True)
class DirFileTree:
    """Folders on disk."""

    root: Path

    def describe_location(self, subdir: str = "") -> str:
        """Return its path."""
        return str(self.root / subdir)

    def list_dirs(self, subdir: str = "") -> tuple[str, ...]:
        """Ask the file system."""
        try:
            with os.scandir(self.root / subdir) as entries:
                return tuple(sorted(e.name for e in entries if e.is_dir() and not is_ignored_dir(e.name)))
        except OSError as error:
            raise UserError(
                f"{self.describe_location(subdir)}: cannot be listed: {error.strerror}. Check the path"
            ) from error

    def list_files(self, subdir: str = "") -> list[str]:
        """Walk through it."""
        top, found = self.describe_location(subdir), list[str]()
        for folder, _, names in os.walk(top, followlinks=True):
            below = os.path.relpath(folder, top)
            prefix = "" if below == "." else f"{Path(below).as_posix()}/"
            found += [prefix + name for name in names]
        return sorted(found)

    def open_images(self, subdir: str = "") -> Scenes:
        """Open the photos as any folder of photos; tars that lie beside them are not asked."""
        scenes, problems = open_folder_tree(self.root / subdir, ("rgb",), {"rgb": "."})
        raise_first_problem(problems)
        if scenes is None:
            raise UserError(f"{self.describe_location(subdir)}: no photos in it. Expected CLASS/NAME.jpg")
        return scenes

    def compute_fingerprint(self, subdir: str = "") -> str:
        """Return when each class folder changed."""
        root = self.root / subdir
        return " ".join(f"{name}:{(root / name).stat().st_mtime_ns}" for name in self.list_dirs(subdir))


@dataclass(frozen=True)
class TarFileTree:
    """Folders in a tar."""

    tree: TarTree

    def describe_location(self, subdir: str = "") -> str:
        """Return the path of the tar, and that in it."""
        return f"{self.tree.tar}: {subdir}" if subdir else str(self.tree.tar)

    def list_dirs(self, subdir: str = "") -> tuple[str, ...]:
        """Ask the tar's index."""
        return tuple(name for name in self.tree.list_dirs(subdir) if not is_ignored_dir(name))

    def list_files(self, subdir: str = "") -> list[str]:
        """Ask the tar's index."""
        return self.tree.list_files(subdir)

    def open_images(self, subdir: str = "") -> Scenes:
        """Open the photos where they lie in the tar."""
        return self.tree.open_images(subdir)

    def compute_fingerprint(self, subdir: str = "") -> str:
        """Return size and time of change of the tar."""
        return f"{subdir} {self.tree.fingerprint}"


def is_ignored_dir(name: str) -> bool:
    """Return whether a folder is no class's: it hides, or macOS packed it beside what was asked for.

    >>> is_ignored_dir(".git"), is_ignored_dir("__MACOSX"), is_ignored_dir("cat")
    (True, True, False)
    """
    return name.startswith(".") or name == "__MACOSX"


def open_file_tree(path: Path) -> FileTree:
    """Return a folder, or a tar as one."""
    if path.is_dir():
        return DirFileTree(path)
    if path.suffix == ".zip":
        raise UserError(f"{path}: a zip, of which no photo can be read by itself. Unpack it: unzip {path}")
    return TarFileTree(open_tar_tree(path))


def is_shard(path: Path) -> bool:
    """Whether a tar is a shard of labelled samples (KEY.jpg, KEY.cls), seen by its first members."""
    try:
        with tarfile.open(path, "r:") as tar:
            return any(member.name.endswith(".cls") for member in islice(tar, _NUM_PEEKED_MEMBERS))
    except (tarfile.TarError, OSError):  # whoever opens it says what it is
        return False


def find_class_root(tree: FileTree) -> str:
    """Return the folder that holds the class folders: the archives of some sets have one of their own around them."""
    subdir = ""
    while len(names := tree.list_dirs(subdir)) == 1 and not is_wnid(names[0]):
        inner = f"{subdir}/{names[0]}".lstrip("/")
        if not tree.list_dirs(inner):  # one class alone
            break
        subdir = inner
    return subdir
