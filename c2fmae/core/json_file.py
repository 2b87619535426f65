"""Reading of JSON files, with limits for untrusted ones, and atomic writing."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file, write_atomic

MAX_BYTES = 1 << 20
"""Default limit of a JSON file's size in bytes."""

MAX_DEPTH = 64
"""Default limit of nesting levels: deeper documents cause recursion errors in the code that uses them."""


def read_json(
    path: Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, fix: str = "Restore it"
) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises a `UserError` that names the file and ends with `fix` if the file is missing, not a regular file, too large,
    too deeply nested, not JSON or not an object.
    """
    data = read_file(path, max_bytes=max_bytes, content="JSON", fix=fix)
    try:
        return parse_json_object(data, max_depth=max_depth)
    except ValueError as error:
        raise UserError(f"{path}: {error}. {fix}") from error


def parse_json_object(data: bytes | str, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Return the object in a JSON text, or raise a `ValueError` with the reason why the text is not accepted."""
    try:
        with pause_gc():
            document = json.loads(data)
    except RecursionError as error:
        raise ValueError(f"is nested more than {max_depth} levels deep") from error
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {_TYPE_NAMES.get(type(document), 'a number')}")
    level, depth = [document], 0
    while level := [child for node in level for child in _list_containers(node)]:
        depth += 1
        if depth >= max_depth:
            raise ValueError(f"is nested more than {max_depth} levels deep")
    return document


@contextmanager
def pause_gc() -> Iterator[None]:
    """Pause the search for cycles, which takes half of the time that a document of millions of values is read."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def to_json(document: Any) -> str:
    """Return a document as indented JSON text that ends with a newline."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, document: Any, *, is_shared: bool = False) -> None:
    """Write a document to a JSON file atomically: after an error the previous content is unchanged."""
    data = to_json(document).encode(errors="backslashreplace")  # names of files may be invalid UTF-8
    write_atomic(path, data, is_shared=is_shared)


_TYPE_NAMES = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


_CONTAINERS = frozenset((dict, list))


def _list_containers(node: Any) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node
    if _CONTAINERS.isdisjoint(map(type, children)):  # most lists are long ones of numbers
        return []
    return [child for child in children if isinstance(child, dict | list)]
