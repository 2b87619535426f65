"""Walking a directory tree whose links may form loops."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk_dirs(
    top: str | Path,
    *,
    report_error: Callable[[OSError], None] | None = None,
    report_repeat: Callable[[str, str], None] | None = None,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield the path, subdirectories and files of each directory, like `os.walk`; links are followed.

    No directory is entered twice: a link to a directory that contains it would give endless paths. `report_repeat` is
    called with the second path of a directory and the first one.
    """
    seen: dict[tuple[int, int], str] = {}
    for path, subdirs, files in os.walk(top, onerror=report_error, followlinks=True):
        status = Path(path).stat()
        first = seen.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            yield path, subdirs, files
        else:
            subdirs.clear()
            if report_repeat is not None:
                report_repeat(path, first)
