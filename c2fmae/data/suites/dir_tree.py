"""Class directories on disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.data.dir_walk import walk_dirs
from c2fmae.data.folders import open_folder_tree
from c2fmae.data.problems import raise_first_problem
from c2fmae.data.scenes import Scenes


@dataclass(frozen=True)
class DirTree:
    """A directory on disk as a `FileTree`."""

    root: Path

    def describe_location(self, subdir: str = "") -> str:
        """Return the path of a directory."""
        return str(self.root / subdir)

    def list_dirs(self, subdir: str = "") -> tuple[str, ...]:
        """Return the sorted names of the directories in a directory, without those that `is_ignored_dir`."""
        try:
            with os.scandir(self.root / subdir) as entries:
                return tuple(sorted(e.name for e in entries if e.is_dir() and not is_ignored_dir(e.name)))
        except OSError as error:
            raise UserError(
                f"{self.describe_location(subdir)}: cannot be listed: {error.strerror}. Check the path"
            ) from error

    def list_files(self, subdir: str = "") -> list[str]:
        """Return the sorted relative paths of all files below a directory."""
        top, paths = self.describe_location(subdir), list[str]()
        for folder, _, names in walk_dirs(top):
            below = os.path.relpath(folder, top)
            prefix = "" if below == "." else f"{Path(below).as_posix()}/"
            paths += [prefix + name for name in names]
        return sorted(paths)

    def open_images(self, subdir: str = "") -> Scenes:
        """Open the images below a directory, labelled by their directories; tars beside them are ignored."""
        scenes, problems = open_folder_tree(self.root / subdir, ("rgb",), {"rgb": "."})
        raise_first_problem(problems)
        if scenes is None:
            raise UserError(f"{self.describe_location(subdir)}: no images (expected CLASS/NAME.jpg). Check the path")
        return scenes

    def compute_fingerprint(self, subdir: str = "") -> str:
        """Return the modification time of each directory, which changes when images are added or removed."""
        root = self.root / subdir
        return " ".join(f"{name}:{(root / name).stat().st_mtime_ns}" for name in self.list_dirs(subdir))


def is_ignored_dir(name: str) -> bool:
    """Return whether a directory is not a class: it is hidden, or macOS added it to an archive.

    >>> is_ignored_dir(".git"), is_ignored_dir("__MACOSX"), is_ignored_dir("cat")
    (True, True, False)
    """
    return name.startswith(".") or name == "__MACOSX"
