"""Masking as a recipe writes it. Kept apart, since `c2fmae.masking` itself does without pydantic."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from c2fmae.core.config import Config, UnitInterval, describe_validation_error
from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.masking.curricula import CURRICULA
from c2fmae.masking.policies import POLICIES, Blend, Policy


def validate_options(owner: str, factory: Callable[..., object], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options in the types of the target's keyword arguments; all that is wrong is in one error."""
    known = {
        name: p.annotation for name, p in inspect.signature(factory).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    checked, problems = {}, []
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"Known: {', '.join(known) or 'none'}"
            problems.append(f"{owner} has no option {name!r}. {hint}")
            continue
        try:
            checked[name] = TypeAdapter(known[name]).validate_python(value)
        except ValidationError as error:
            problems += [describe_validation_error(Config, details, ("options", name)) for details in error.errors()]
    if problems:
        raise UserError("; ".join(problems))
    return checked


class CurriculumConfig(Config):
    """Which mask leads at which point of training."""

    name: str = "triangle"
    options: dict[str, Any] = Field({})
    """What the curriculum takes besides progress: `order`, `knots`, `alpha` and `beta`."""

    @model_validator(mode="after")
    def _check(self) -> "CurriculumConfig":
        self.build()(0.5)
        return self

    def build(self) -> Callable[[float], tuple[float, float]]:
        """Return progress → (α, β)."""
        curriculum = CURRICULA.get(self.name)
        return partial(curriculum, **validate_options(f"curriculum {self.name!r}", curriculum, self.options))


class MaskingConfig(Config):
    """What is hidden, and how that changes in training."""

    policy: str = "progressive"
    curriculum: CurriculumConfig = CurriculumConfig()
    blend: Blend = "topk"
    object_share: UnitInterval = 0.75
    """Share of the hidden patches that instance-guided masking puts on objects."""
    max_objects: Annotated[int, Field(ge=0)] | None = None
    """Only the largest and most central objects count in instance-guided masking; all unless given."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weights of the classes in semantic-guided masking; all equal unless given."""
    options: dict[str, Any] = Field({})
    """What a policy from outside takes besides the settings above."""

    @model_validator(mode="after")
    def _check(self) -> "MaskingConfig":
        self.build()
        return self

    def build(self) -> Policy:
        """Return the policy with those of the settings that it has."""
        policy = POLICIES.get(self.policy)
        common_options = {
            "curriculum": self.curriculum.build(),
            "blend": self.blend,
            "object_share": self.object_share,
            "max_objects": self.max_objects,
            "weights": self.weights,
        }
        options = validate_options(f"mask {self.policy!r}", policy, self.options)
        accepted = inspect.signature(policy).parameters
        for name in common_options.keys() - accepted.keys():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"mask {self.policy!r} does not look at {name}; leave it out")
        return policy(**{name: value for name, value in common_options.items() if name in accepted} | options)
