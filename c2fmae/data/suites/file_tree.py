"""Directory trees on disk or in a tar, read through one interface."""

import tarfile
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file
from c2fmae.core.labels import is_wnid
from c2fmae.data.scenes import Scenes
from c2fmae.data.suites.dir_tree import DirTree
from c2fmae.data.suites.tar_tree import open_tar_tree

_NUM_PEEKED_MEMBERS = 16  # enough to reach the first samples of a shard


@runtime_checkable
class FileTree(Protocol):
    """A directory tree; paths in it are relative to its root and use slashes."""

    def describe_location(self, subdir: str = "") -> str:
        """Return the name of a directory for messages."""

    def list_dirs(self, subdir: str = "") -> tuple[str, ...]:
        """Return the sorted names of the directories in a directory, without those that `is_ignored_dir`."""

    def list_files(self, subdir: str = "") -> list[str]:
        """Return the sorted paths of all files below a directory, relative to it."""

    def open_images(self, subdir: str = "") -> Scenes:
        """Open the images below a directory; labels number its subdirectories in the order of their names."""

    def compute_fingerprint(self, subdir: str = "") -> str:
        """Return a string that changes when images below a directory are added or removed; reads no image."""


def open_file_tree(path: Path) -> FileTree:
    """Open a directory or a tar."""
    if path.is_dir():
        return DirTree(path)
    if path.suffix == ".zip":
        raise UserError(f"{path}: single images cannot be read from a zip. Extract it: unzip {path}")
    return open_tar_tree(path)


def is_shard(path: Path) -> bool:
    """Return whether a tar is a shard of labelled samples (KEY.jpg, KEY.cls), judging by its first members."""
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return any(member.name.endswith(".cls") for member in islice(tar, _NUM_PEEKED_MEMBERS))
    except (tarfile.TarError, UserError):  # the error is reported when the tar is opened
        return False


def find_class_root(tree: FileTree) -> str:
    """Return the directory that contains the class directories: some archives put them into a single directory."""
    subdir = ""
    while len(names := tree.list_dirs(subdir)) == 1 and not is_wnid(names[0]):
        inner = f"{subdir}/{names[0]}".lstrip("/")
        if not tree.list_dirs(inner):  # a single class
            break
        subdir = inner
    return subdir
