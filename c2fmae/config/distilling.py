"""Configs of self-distillation: DINO, iBOT, AttMask and MST."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from c2fmae.config.branches import BranchConfig, Momentum, TeacherTemperature, Temperature
from c2fmae.config.method import METHOD_KINDS
from c2fmae.core.config import PositiveInt, UnitInterval
from c2fmae.core.errors import check_ascending
from c2fmae.core.ramps import Ramp


class DistillingConfig(BranchConfig):
    """A method whose student predicts how a teacher distributes an image over prototypes."""

    required_views: ClassVar[tuple[str, ...]] = ("second", "local")
    local_views: ClassVar[tuple[str, ...]] = ("local",)

    hidden: PositiveInt = 2048
    """Width of the hidden layers of the head."""
    bottleneck: PositiveInt = 256
    prototypes: PositiveInt = 65536
    temperature: Temperature = 0.1
    """Temperature of the student."""
    teacher_temperature: TeacherTemperature = Ramp(start=0.04, end=0.07, shape="linear", epochs=50)
    momentum: Momentum = Ramp(start=0.996, end=1.0)
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
    patch_teacher_temperature: TeacherTemperature = Ramp(start=0.04, end=0.07, shape="linear", epochs=50)
    mask_ratio: tuple[UnitInterval, UnitInterval] = (0.1, 0.5)
    """Range of the fraction of the patches that are hidden in a view."""
    mask_chance: UnitInterval = 0.5
    """Probability that patches of a view are hidden."""
    patch_weight: float = Field(1.0, ge=0)
    """Weight of the loss of hidden patches beside that of images."""

    @model_validator(mode="after")
    def _check_mask_ratio(self) -> "IBOTConfig":
        check_ascending("mask_ratio", self.mask_ratio)
        return self


@METHOD_KINDS.register("attmask")
class AttMaskConfig(IBOTConfig):
    """AttMask: iBOT, but what the teacher attends to most is hidden (Kakogeorgiou et al., 2022).

    The fraction of hidden patches is drawn for each step, not for each view.
    """

    implementation: ClassVar[str] = "c2fmae.methods.branches.attmask:AttMask.build"

    kind: Literal["attmask"] = "attmask"  # type: ignore[assignment]
    name: str = "attmask"
    hint_fraction: UnitInterval = 0.1
    """Fraction of most attended patches of which some are shown again (AttMask-Hint): a fraction that is drawn for each
    step from `mask_ratio` too. With 0, none is (AttMask-High)."""


@METHOD_KINDS.register("mst")
class MSTConfig(DistillingConfig):
    """MST: DINO, but patches of low attention are hidden, and all pixels are restored (Li et al., 2021).

    This is from the paper's text, as there is no official code: the values of its own settings are chosen here.
    """

    implementation: ClassVar[str] = "c2fmae.methods.branches.mst:MST.build"

    kind: Literal["mst"] = "mst"
    name: str = "mst"
    low_fraction: UnitInterval = 0.25
    """Fraction of least attended patches of which some are hidden."""
    mask_chance: UnitInterval = 0.5
    """Probability that one of these patches is hidden."""
    restorer_width: PositiveInt = 256
    """Channels of the convolutions that restore the pixels."""
    pixel_weight: float = Field(1.0, ge=0)
    """Weight of the loss of pixels beside that of images."""
