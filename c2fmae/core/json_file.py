"""JSON that lies beside weights, from anywhere: small, whole, and an object."""

import json
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError

_MAX_BYTES = 1 << 20  # bytes


def read_json(file: Path) -> dict[str, Any]:
    """Return what a config's file says."""
    try:
        size, text = file.stat().st_size, b""
        if size <= _MAX_BYTES:
            text = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if size > _MAX_BYTES:
        raise UserError(f"{file}: is no config: it has {size:,} bytes")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: is no config: expected an object")
    return values
