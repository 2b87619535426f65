"""Configs of self-distillation: DINO and iBOT."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from c2fmae.config.branches import BranchConfig, Number, Temperature
from c2fmae.config.method import METHOD_KINDS
from c2fmae.core.config import PositiveInt, UnitInterval
from c2fmae.core.ramps import Ramp


class DistillingConfig(BranchConfig):
    """A method whose student predicts how a teacher distributes an image over prototypes."""

    required_views: ClassVar[tuple[str, ...]] = ("second", "local")

    hidden: PositiveInt = 2048
    """Width of the hidden layers of the head."""
    bottleneck: PositiveInt = 256
    prototypes: PositiveInt = 65536
    temperature: Temperature = 0.1
    """Temperature of the student."""
    teacher_temperature: Number = Ramp(start=0.04, end=0.07, shape="linear", epochs=50)
    momentum: Number = Ramp(start=0.996, end=1.0)
    """Momentum of the teacher."""
    centre_momentum: UnitInterval = 0.9
    held_epochs: Annotated[int, Field(ge=0)] = 3
    """First epochs in which the prototypes are not trained."""


@METHOD_KINDS.register("dino")
class DinoConfig(DistillingConfig):
    """DINO: small views are distributed over prototypes as the teacher distributes large ones (Caron et al., 2021)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.dino:Dino.build"

    kind: Literal["dino"] = "dino"
    name: str = "dino"


@METHOD_KINDS.register("ibot")
class IBOTConfig(DistillingConfig):
    """iBOT: DINO, and hidden patches are distributed as the teacher, which sees them, does (Zhou et al., 2022)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.ibot:IBOT.build"

    kind: Literal["ibot"] = "ibot"
    name: str = "ibot"
    prototypes: PositiveInt = 8192
    patch_teacher_temperature: Number = Ramp(start=0.04, end=0.07, shape="linear", epochs=50)
    mask_ratio: tuple[UnitInterval, UnitInterval] = (0.1, 0.5)
    """Range of the fraction of the patches that are hidden in a view."""
    mask_chance: UnitInterval = 0.5
    """Probability that patches of a view are hidden."""
    patch_weight: float = Field(1.0, ge=0)
    """Weight of the loss of hidden patches beside that of images."""
