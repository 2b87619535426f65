"""Reading of the lists in a json of COCO's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError

MAX_JSON_BYTES = 1 << 32  # instances_train2017.json has 470 MB
_MAX_INT = 2**63 - 1


def read_column(path: Path, document: Mapping[str, Any], table: str, key: str, *kinds: type) -> list[Any]:
    """Return the value of a key in every entry of a list. Raise an error if one is missing or of another type."""
    if not isinstance(document.get(table), list):
        raise UserError(f"{path}: has no list {table!r}. Use a file in COCO's format")
    values = [entry.get(key) if isinstance(entry, dict) else None for entry in document[table]]
    for number, value in enumerate(values):
        if not isinstance(value, kinds) or (isinstance(value, int) and abs(value) > _MAX_INT):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{path}: {table}[{number}] has no {key!r} of type {expected}. Fix or remove it")
    return values
