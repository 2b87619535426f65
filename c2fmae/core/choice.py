"""Choices: a registered name and the options of its entry, checked in one place.

In configs, masking policies, curricula, decoders and data sets are written `{name: …, options: {…}}`. A plain name
selects the default options.
"""

import inspect
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, ClassVar

from pydantic import (
    ValidationError,
    create_model,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from c2fmae.core.config import Config
from c2fmae.core.errors import did_you_mean
from c2fmae.core.registry import Registry


class Choice(Config):
    """A name in a registry and options of its entry. An option that the entry does not have is an error.

    Dumps for JSON and YAML list every option; Python dumps list those that were given, so that overriding the name does
    not require removing the defaults of another entry.
    """

    option_types: ClassVar[Mapping[Hashable, "type[Choice]"]] = {}
    """Choices to use for options of a type, by that type: the option `curriculum` of a policy is a choice itself."""

    name: str
    options: Any = Config()

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of names, importing the modules that fill it."""
        raise NotImplementedError

    @classmethod
    def option_class(cls, name: str) -> type[Config]:
        """Return the config class of an entry's options."""
        return get_option_class(cls.registry(), name, cls.option_types)

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        cls.registry().get(name)
        return name

    @field_validator("options", mode="plain")
    @classmethod
    def _check_options(cls, options: Any, info: Any) -> Any:
        if "name" not in info.data:  # it is unknown, which has been reported
            return options
        return check_options(cls.registry(), info.data["name"], options, cls.option_types)

    @field_serializer("options")
    def _dump_options(self, options: Config, info: Any) -> dict[str, Any]:
        return options.model_dump(mode=info.mode, exclude_unset=info.mode == "python")

    def given_options(self) -> dict[str, Any]:
        """Return the options that were given, without defaults."""
        return {name: value for name, value in self.options if name in self.options.model_fields_set}

    def __reduce__(self) -> Any:
        """Return how to restore a pickled choice: the class of its options may be one that no module contains."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return _make_choice, (type(self), {**given, "options": self.given_options()})

    def keyword_options(self) -> dict[str, Any]:
        """Return all options as keyword arguments of the entry. Options that are choices are built."""
        return {name: value.build() if isinstance(value, Choice) else value for name, value in self.options}

    def build(self) -> Any:
        """Return the chosen object, built with its options."""
        return self.instantiate()

    def instantiate(self, *arguments: Any) -> Any:
        """Call the entry with the arguments and the options.

        The options are the last argument of an entry that was registered with a class for them, and keyword arguments
        of others.
        """
        entry = self.registry().get(self.name)
        if self.registry().option_class(self.name) is not None:
            return entry(*arguments, self.options)
        return entry(*arguments, **self.keyword_options())


def _make_choice(cls: type[Choice], fields: Mapping[str, Any]) -> Choice:
    return cls(**fields)


def get_option_class(
    registry: Registry[Any], name: str, option_types: Mapping[Hashable, type[Choice]] | None = None
) -> type[Config]:
    """Return the config class of an entry's options: its own, or one made from its keyword-only parameters."""
    registered = registry.option_class(name)
    return registered or _derive_option_class(registry.get(name), tuple((option_types or {}).items()))


def check_options(
    registry: Registry[Any],
    name: str,
    options: Any,
    option_types: Mapping[Hashable, type[Choice]] | None = None,
) -> Config:
    """Return options of an entry as its option class, or raise an error that lists all problems."""
    option_class = get_option_class(registry, name, option_types)
    if isinstance(options, Config):
        options = {key: getattr(options, key) for key in options.model_fields_set}
    try:
        return option_class.model_validate(options)
    except ValidationError as error:
        known = ", ".join(option_class.model_fields) or "none"
        lines = []
        for details in error.errors():
            kind: str | PydanticCustomError = details["type"]
            if kind == "extra_forbidden" and len(details["loc"]) == 1:
                hint = did_you_mean(str(details["loc"][0]), option_class.model_fields) or f"Options: {known}"
                text = f"{registry.kind} {name!r} has no such option. {hint}"
                kind = PydanticCustomError("unknown_option", "{text}", {"text": text})
            elif kind == "unknown_option":  # of an option that is a choice itself
                kind = PydanticCustomError("unknown_option", "{text}", details["ctx"])
            lines.append(
                InitErrorDetails(type=kind, loc=details["loc"], input=details["input"], ctx=details.get("ctx", {}))
            )
        raise ValidationError.from_exception_data(option_class.__name__, lines) from error


@cache
def _derive_option_class(entry: Any, option_types: tuple[tuple[Hashable, type[Choice]], ...]) -> type[Config]:
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(entry, eval_str=True).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
            default = ... if parameter.default is parameter.empty else parameter.default
            for option_type, choice in option_types:
                if annotation == option_type:
                    annotation, default = choice, choice(name=choice.registry().find_name(default))
            fields[parameter.name] = (annotation, default)
    return create_model(f"{entry.__name__}Options", __base__=Config, **fields)
