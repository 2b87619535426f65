"""Directories of stored predictions, with everything that these depend on."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json, write_json

log = logging.getLogger(__name__)

IDENTITY_FILE = "identity.json"


def open_prediction_dir(predictions_dir: Path, identity: Mapping[str, Any], world: World) -> None:
    """Delete predictions of another identity, and record this one. All processes must call this."""
    if world.is_main:
        path = predictions_dir / IDENTITY_FILE
        if predictions_dir.exists() and _read_identity(path) != identity:
            log.info("%s: holds predictions of other weights, data or settings, which are replaced", predictions_dir)
            shutil.rmtree(predictions_dir)
        write_json(path, identity)
    world.barrier()


def has_identity(predictions_dir: Path, identity: Mapping[str, Any]) -> bool:
    """Return whether stored predictions have this identity, in any format."""
    stored = _read_identity(predictions_dir / IDENTITY_FILE)
    return isinstance(stored, dict) and {key: value for key, value in stored.items() if key != "format"} == identity


def _read_identity(path: Path) -> object:
    try:
        return read_json(path, max_bytes=1 << 20)
    except UserError:
        return None
