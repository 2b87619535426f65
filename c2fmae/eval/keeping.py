"""What evaluations keep: files that are there whole or not at all."""

import os
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.files import write_whole


def keep(path: Path, data: bytes) -> None:
    """Write a file, and the folders above it; a place that cannot be written to is named."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, mark=f".{os.getpid()}")  # two commands may be at work in one folder
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}. Give another --out") from error
