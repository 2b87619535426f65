"""Reading of YAML with limits for untrusted files. Values have the types of JSON: a date, for example, is text.

Merge keys (`<<`) are not supported: a key that is set twice would have no clear value.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from c2fmae.core.errors import UserError
from c2fmae.core.files import read_text

MAX_BYTES = 1 << 18  # which take seconds to parse
MAX_DEPTH = 64
MAX_VALUES = 100_000
"""Maximum number of values, where an alias counts as often as it is used: a few lines of aliases can mean billions."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping. A key that occurs twice is an error, since one of its values would be lost."""
    text = read_text(path, max_bytes=MAX_BYTES, content="YAML", fix="Check the path, or use another file")
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, got {describe_type(values)}")
    return values


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text; errors begin with `source` and the position."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise UserError(f"{source}: is nested more than {MAX_DEPTH} levels deep. Remove levels") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{source}: {position}{error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {error}") from error


def describe_type(value: object) -> str:
    """Return the type of a value in the words of YAML."""
    return {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}.get(
        type(value), type(value).__name__
    )


_JSON_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_constructors = {  # noqa: RUF012 - replaces that of the base class
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _JSON_TYPES
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in _JSON_TYPES]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, IndexError, KeyError) as error:  # of an int without digits, or with too many
            kind, value = node.tag.removeprefix(_TAG), str(node.value)
            text = f"{value[:40]}{'…' * (len(value) > 40)}"
            raise yaml.MarkedYAMLError(
                problem=f"{text!r} is not a valid {kind}", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key!r} is set twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def _check_size(root: yaml.Node) -> None:
    """Raise for too many or too deeply nested values, of which a node that contains itself has infinitely many."""
    nodes, num_values = [(root, 1)], 0
    while nodes:
        node, depth = nodes.pop()
        num_values += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        if num_values > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"has more than {MAX_VALUES:,} values", problem_mark=root.start_mark)
        if isinstance(node, yaml.MappingNode):
            nodes += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(child, depth + 1) for child in node.value]
