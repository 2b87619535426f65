"""Configs: frozen and strict, read from YAML and changed by dotted `key=value` overrides.

One error lists all problems of a config, each with its dotted key and, for a misspelt key or value, the most similar
known one.
"""

import json
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.yaml_file import describe_type, parse_yaml, read_yaml

PositiveInt = Annotated[int, Field(ge=1)]
WorkerCount = Annotated[int, Field(ge=0)] | None
"""A number of loader processes; None follows from the cores (`resolve_num_workers`)."""
PositiveFloat = Annotated[float, Field(gt=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""
Fraction = Annotated[float, Field(gt=0, le=1)]
"""A number in (0, 1]."""

RESUME_SAFE = "resume-safe"
"""Marks a field, as in `workers: Annotated[int, RESUME_SAFE]`, which may change on resume: the result is the same."""

_MAX_SHOWN = 200  # characters of a value in an error

C = TypeVar("C", bound="Config")  # not Self, which beartype (in the run with shape checks) does not support
P = ParamSpec("P")


class Config(BaseModel):
    """Base class of configs: fields cannot be assigned, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def from_dict(cls: type[C], values: Any, overrides: Iterable[str] = (), *, source: str | None = None) -> C:
        """Build a config from plain values and `a.b=value` overrides.

        Values of an earlier version are migrated first. All problems are reported in one error, which begins with
        `source`.
        """
        heading = source or cls.__name__
        if not isinstance(values, Mapping):
            raise UserError(f"{heading}: expected a mapping of settings (key: value), got {describe_type(values)}")
        try:
            overrides = list(overrides)
            keys = {override.partition("=")[0].strip() for override in overrides}
            values = cls._add_defaults(cls.migrate(dict(values)), keys)
            tree, problems = _apply_overrides(dict(values), overrides)
            unusable = _list_unusable_values(tree)
            if not unusable:
                tree, _ = _apply_overrides(tree, cls.derive_overrides(values, tree, keys))
        except UserError as error:  # of the migration
            raise UserError(f"{heading}: {error}") from error
        problems += unusable
        try:
            if not unusable:
                config = cls.model_validate(tree)
                if not problems:
                    return config
        except ValidationError as error:
            problems += [describe_validation_error(cls, details) for details in error.errors()]
        if len(problems) == 1:
            raise UserError(f"{heading}: {problems[0]}")
        raise UserError("\n".join([f"{heading}: {len(problems)} problems", *(f"  {line}" for line in problems)]))

    @classmethod
    def from_yaml(cls: type[C], path: str | Path, overrides: Iterable[str] = ()) -> C:
        """Read a YAML file."""
        return cls.from_dict(read_yaml(path), overrides, source=str(path))

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format. Subclasses whose files have changed override this."""
        return values

    @classmethod
    def _add_defaults(cls, values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Return values with the defaults of nested settings of which dotted keys change a part."""
        defaults = {}
        for name in {key.partition(".")[0] for key in keys if "." in key} - values.keys():
            field = cls.model_fields.get(name)
            default = field.get_default(call_default_factory=True) if field else None
            if isinstance(default, Config | str):  # a choice may be written as its name
                defaults[name] = default.model_dump() if isinstance(default, Config) else default
        return {**values, **defaults}

    @classmethod
    def derive_overrides(
        cls, values: Mapping[str, Any], overridden: Mapping[str, Any], keys: Collection[str]
    ) -> list[str]:
        """Return further overrides that follow from those of `keys`, such as clearing the alternative to a setting.

        `values` and `overridden` are the values without and with the overrides, neither of them validated.
        """
        del values, overridden, keys
        return []

    @classmethod
    def resume_safe_keys(cls) -> list[str]:
        """Return the dotted keys of all fields that are marked `RESUME_SAFE`."""
        keys = []
        for name, field in cls.model_fields.items():
            if RESUME_SAFE in field.metadata:
                keys.append(name)
            else:
                keys += [
                    f"{name}.{key}"
                    for inner in _unwrap(field.annotation)
                    if issubclass(inner, Config)
                    for key in inner.resume_safe_keys()
                ]
        return keys

    @classmethod
    def is_resume_safe(cls, key: str) -> bool:
        """Return whether a dotted key may change on resume without changing the result."""
        return any(f"{key}.".startswith(f"{safe}.") for safe in cls.resume_safe_keys())

    def override(self: C, overrides: Iterable[str]) -> C:
        """Return a copy with `a.b=value` overrides applied and checked."""
        return self.from_dict(self.model_dump(), overrides, source="--set")

    def to_yaml(self) -> str:
        """Return the whole config as YAML. Reading it gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def replace(config: C, make: Callable[P, C], *args: P.args, **changes: P.kwargs) -> C:  # noqa: ARG001 - for mypy
    """Return a copy with some fields replaced and everything validated again.

    `make` is the class of the config, against which mypy checks the names of the changes; all of its fields need
    defaults.

    >>> class Run(Config):
    ...     steps: int = 5
    ...     seed: int = 0
    >>> replace(Run(seed=3), Run, steps=7)
    Run(steps=7, seed=3)
    """
    assert not args  # configs have only keyword parameters
    given = {name: getattr(config, name) for name in config.model_fields_set}
    return type(config).model_validate({**given, **changes})


def _apply_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    problems = []
    for override in overrides:
        path, is_assignment, text = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not is_assignment or not all(keys):
            problems.append(f"{override!r}: expected key=value")
            continue
        try:
            value = parse_yaml(text, "--set")
        except UserError:
            value = text
        node = tree
        for depth, key in enumerate(keys[:-1], start=1):
            child = node.get(key)
            child = {} if child is None else child  # optional settings are null until one is given
            if isinstance(child, str) and keys[depth] == "options":
                child = {"name": child}  # a plain name is short for a choice
            if not isinstance(child, dict):
                problems.append(
                    f"{path}: {'.'.join(keys[:depth])} is {describe_type(child)}, which has no nested settings"
                )
                break
            node[key] = child = dict(child)  # do not write to the caller's mapping
            node = child
        else:
            node[keys[-1]] = value
    return tree, problems


def check_types(cls: type[Config], values: object, source: str) -> None:
    """Raise a `UserError` if values do not have the types of a config, which need not list all of them."""
    try:
        cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {describe_validation_error(cls, error.errors()[0])}") from error


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} …"


def _list_unusable_values(node: Any, key: str = "") -> list[str]:
    """Return a problem for each value that is valid YAML, but that no setting can have."""
    match node:
        case Mapping():
            children = [(f"{key}.{name}" if key else str(name), child) for name, child in node.items()]
            return [problem for name, child in children for problem in _list_unusable_values(child, name)]
        case list() | tuple():
            return [
                problem
                for index, child in enumerate(node)
                for problem in _list_unusable_values(child, f"{key}.{index}")
            ]
        case int() if not -(2**63) <= node < 2**63:
            return [f"{key}: expected an integer of at most 64 bits, got one of {node.bit_length()} bits"]
        case str() if "\0" in node:
            return [f"{key}: contains a NUL character. Remove it"]
    return []


def describe_validation_error(cls: type[Config], details: ErrorDetails, prefix: tuple[int | str, ...] = ()) -> str:
    """Return a sentence for one of pydantic's errors, which begins with the dotted key."""
    path = ".".join(map(str, (*prefix, *details["loc"])))
    match details["type"]:
        case "extra_forbidden":
            name, known = str(details["loc"][-1]), _field_names(cls, details["loc"][:-1])
            nested = _find_nested(cls, name) if len(details["loc"]) == 1 else None
            similar = f"Did you mean {nested!r}?" if nested else did_you_mean(name, known)
            hint = similar or f"Known: {', '.join(known)}"
            text = f"no such setting. {hint}"
        case "unknown_option":
            text = details["msg"]
        case "missing":
            text = "is required"
        case "literal_error":
            choices = details["ctx"]["expected"]
            hint = did_you_mean(str(details["input"]), [choice.strip("'") for choice in _split_choices(choices)])
            text = f"expected {choices}, got {_abbreviate(details['input'])}{'. ' + hint if hint else ''}"
        case "value_error":
            text = str(details["ctx"]["error"])
        case "string_too_short":
            text = "expected a name, got nothing"
        case "tuple_type" | "list_type":
            text = f"expected a list, got {_abbreviate(details['input'])}"
        case "model_type" | "dict_type" | "mapping_type":
            text = f"expected a mapping of settings (key: value), got {_abbreviate(details['input'])}"
        case _:
            text = f"{details['msg'][:1].lower()}{details['msg'][1:]}, got {_abbreviate(details['input'])}"
    return f"{path}: {text}" if path else text


def format_override(key: str, value: Any) -> str:
    """Return the override `key=value`, with a value of plain types as YAML.

    >>> format_override("data.train", ["a, b", "c"])
    'data.train=["a, b", "c"]'
    """
    return f"{key}={json.dumps(value)}"


def list_settings(cls: type[BaseModel]) -> list[str]:
    """Return the keys of a config. A key with nested settings ends in `.…`."""
    return [
        f"{key}.…" if any(issubclass(inner, BaseModel) for inner in _unwrap(field.annotation)) else key
        for key, field in cls.model_fields.items()
    ]


def _split_choices(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _field_names(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the settings that exist at a dotted path."""
    for key in path:
        if isinstance(key, str) and key in cls.model_fields:
            inner = [
                config_class
                for config_class in _unwrap(cls.model_fields[key].annotation)
                if issubclass(config_class, BaseModel)
            ]
            if not inner:
                return []
            cls = inner[0]
    return list(cls.model_fields)


def _find_nested(cls: type[BaseModel], name: str) -> str | None:
    """Return the dotted key of a nested setting of this name."""
    for key, field in cls.model_fields.items():
        for inner in _unwrap(field.annotation):
            if issubclass(inner, BaseModel):
                nested = name if name in inner.model_fields else _find_nested(inner, name)
                if nested is not None:
                    return f"{key}.{nested}"
    return None


def _unwrap(annotation: Any) -> list[type]:
    """Return the classes inside `X | None`, `tuple[X, ...]`, `dict[str, X]` and the like."""
    if get_origin(annotation) is Annotated:
        return _unwrap(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return [kind for inner in get_args(annotation) for kind in _unwrap(inner)]
    return [annotation] if isinstance(annotation, type) else []
