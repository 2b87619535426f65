"""Configs of two-branch methods that hide patches from the student, and not from the teacher: CMAE, LUT and ConMIM."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from c2fmae.config.branches import BranchConfig, Momentum, Temperature
from c2fmae.config.contrastive import ProjectorConfig
from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.method import METHOD_KINDS
from c2fmae.core.config import PositiveFloat, PositiveInt
from c2fmae.core.decoder_options import JointOptions
from c2fmae.core.errors import UserError
from c2fmae.core.ramps import Ramp

PIXEL_DECODER = JointOptions(dim=512, num_heads=16, depth=8, has_norm=True)
CMAE_FEATURE_DECODER = JointOptions(dim=512, num_heads=16, depth=2, has_norm=True)


class UnitMaskingConfig(ProjectorConfig):
    """A method with a teacher for which units of patches are hidden from the student."""

    required_views: ClassVar[tuple[str, ...]] = ("target",)

    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Fraction of the units that are hidden."""
    mask_unit: PositiveInt = 2
    """Side of a unit of patches, which are hidden together."""
    momentum: Momentum = Ramp(start=0.996, end=1.0)


@METHOD_KINDS.register("cmae")
class CMAEConfig(UnitMaskingConfig):
    """CMAE: MAE, and the mean of a second decoder's features finds its image's own (Huang et al., 2023)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.cmae:CMAE.build"

    kind: Literal["cmae"] = "cmae"
    name: str = "cmae"
    hidden: PositiveInt = 1536
    decoder: DecoderConfig = Field(default_factory=lambda: DecoderConfig(name="joint", options=PIXEL_DECODER))
    """Decoder that predicts pixels."""
    feature_decoder: DecoderConfig = Field(
        default_factory=lambda: DecoderConfig(name="joint", options=CMAE_FEATURE_DECODER)
    )
    """Decoder of the features that are compared."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.65
    temperature: Temperature = 0.07
    contrast_weight: float = Field(1.0, ge=0)
    """Weight of the contrast beside the prediction of pixels; the contrast is multiplied by twice its temperature."""
    momentum: Momentum = 0.996


@METHOD_KINDS.register("conmim")
class ConMIMConfig(UnitMaskingConfig):
    """ConMIM: hidden patches find the teacher's output for themselves among those of the image (Yi et al., 2023)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.conmim:ConMIM.build"

    kind: Literal["conmim"] = "conmim"
    name: str = "conmim"
    temperature: Temperature = 0.1
    group: PositiveInt = 32
    """Consecutive images of the global batch over which the projector's norms compute statistics together; a divisor of
    the number of images of a micro-batch."""
    layer_scale: PositiveFloat = 0.1
    """Initial value of the ViT's layer scales, if it has them, as deit3_base_patch16_224 does; 1e-5 for a large ViT."""

    @model_validator(mode="after")
    def _check_crop(self) -> "ConMIMConfig":
        crop = self.views["target"].crop
        if crop != "main":
            raise UserError(
                f"views.target.crop: conmim compares patches at the same places (expected main, got {crop}). Set it to "
                "main"
            )
        return self


@METHOD_KINDS.register("lut")
class LUTConfig(BranchConfig):
    """LUT: MAE, and the visible patches of each view predict the teacher's mean of the other one (Kim et al., 2024)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.lut:LUT.build"
    required_views: ClassVar[tuple[str, ...]] = ("second",)

    kind: Literal["lut"] = "lut"
    name: str = "lut"
    decoder: DecoderConfig = Field(default_factory=lambda: DecoderConfig(name="joint", options=PIXEL_DECODER))
    """Decoder that predicts pixels of the main view."""
    mask_ratio: Annotated[float, Field(ge=0.5, lt=1)] = 0.75
    """Fraction of the patches that are hidden in each view; no patch is visible in both."""
    hidden: PositiveInt = 4096
    """Width of the hidden layer of the projector and the predictor."""
    head_norm: Literal["none", "batch"] = "none"
    """Norm of the hidden layer of the projector and the predictor."""
    context_weight: float = Field(0.25, ge=0)
    """Weight of the prediction of the teacher's features beside that of pixels."""
    momentum: Momentum = Ramp(start=0.996, end=1.0)
