"""The config of a method of any kind, as pre-training configs have it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from c2fmae.config import contrastive, distilling, masked_branches  # noqa: F401 - they register kinds
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.method import METHOD_KINDS, MethodConfig
from c2fmae.core.config import describe_validation_error
from c2fmae.core.errors import UserError


def parse_method(value: Any) -> MethodConfig:
    """Return a method's config of the class that its `kind` names. Configs without one are of masked autoencoding."""
    if isinstance(value, MethodConfig):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("mapping_type", "expected a mapping")
    kind = value.get("kind", "masked")
    if not isinstance(kind, str):
        raise UserError(f"kind: expected a name, got {kind!r}")
    config_class = METHOD_KINDS.get(kind)
    try:
        return config_class.model_validate(dict(value))
    except ValidationError as error:
        raise ValidationError.from_exception_data(
            config_class.__name__, [_describe_unknown_setting(config_class, details) for details in error.errors()]
        ) from error


def _describe_unknown_setting(config_class: type[MethodConfig], details: Any) -> InitErrorDetails:
    """Return the details of an error. Only here is it known which settings a misspelt one may have meant."""
    kind: str | PydanticCustomError = details["type"]
    if kind == "extra_forbidden":
        text = describe_validation_error(config_class, details).partition(": ")[2]
        kind = PydanticCustomError("unknown_option", "{text}", {"text": text})
    elif kind == "unknown_option":
        kind = PydanticCustomError("unknown_option", "{text}", details["ctx"])
    return InitErrorDetails(type=kind, loc=details["loc"], input=details["input"], ctx=details.get("ctx", {}))


AnyMethodConfig = Annotated[SerializeAsAny[MaskedConfig | MethodConfig], PlainValidator(parse_method)]
"""A method's config of the class that its `kind` names. Hints for misspelt keys elsewhere know those of masked ones."""
