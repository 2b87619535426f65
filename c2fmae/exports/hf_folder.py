"""What all exports for transformers share: the import, names of classes, and the folder."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError

BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers, which image processors take."""


def import_transformers() -> Any:
    """Return the package, or raise a `UserError` that names the extra to install."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("export hf: needs the package transformers. Install it: pip install 'c2fmae[hf]'") from error
    return transformers


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """Return the names of classes as options of transformers' configs."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def save_model(folder: Path, model: Any, processor: Any) -> None:
    """Write a model and its image processor into a folder."""
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # save_pretrained makes them private to the user
        file.chmod(0o666 & ~_get_umask())
    processor.save_pretrained(folder)


@contextmanager
def without_progress_bars(transformers: Any) -> Iterator[None]:
    """Turn off transformers' progress bars."""
    logging = transformers.utils.logging
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
