"""Masking of a method: a policy with its options, among them the curriculum."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from pydantic import model_validator

from c2fmae.core.choice import Choice
from c2fmae.core.registry import Registry

if TYPE_CHECKING:
    import c2fmae.masking.policies

Curriculum = Callable[[float], tuple[float, float]]
Phase = Literal["semantic", "instance", "random"]


class CurriculumConfig(Choice):
    """Which mask leads at which point of training."""

    name: str = "triangle"

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of curricula."""
        from c2fmae.masking.curricula import CURRICULA

        return CURRICULA

    @model_validator(mode="after")
    def _check(self) -> "CurriculumConfig":
        self.build()(0.5)
        return self

    def build(self) -> Curriculum:
        """Return the function from progress in [0, 1] to (α, β)."""
        return partial(self.registry().get(self.name), **self.keyword_options())


class MaskingConfig(Choice):
    """The policy that selects hidden patches, and its options."""

    option_types: ClassVar = {Curriculum: CurriculumConfig}
    name: str = "progressive"

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of policies."""
        from c2fmae.masking.policies import POLICIES

        return POLICIES

    @model_validator(mode="after")
    def _check(self) -> "MaskingConfig":
        self.build()
        return self

    def build(self) -> "c2fmae.masking.policies.Policy":
        """Return the policy."""
        return self.instantiate()  # type: ignore[no-any-return]


# Options as typed dictionaries, so that mypy checks them in recipes. Defaults are those of policies and curricula.


class CurriculumOptions(TypedDict, total=False):
    """Options of the built-in curricula."""

    order: tuple[Phase, ...]
    knots: tuple[tuple[float, float, float], ...]
    alpha: float
    beta: float


class MaskingOptions(TypedDict, total=False):
    """Options of the built-in policies."""

    curriculum: CurriculumConfig
    blend: Literal["topk", "sample", "quota"]
    object_share: float
    max_objects: int | None
    weights: tuple[float, ...] | None
    side: int
    window: int
    min_area: int
    max_aspect: float
