"""Config of a training of a segmenter. It needs no torch."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from c2fmae.config.data import LoaderConfig
from c2fmae.config.segmentation_head import SegmentationHeadConfig
from c2fmae.core.config import Fraction, PositiveFloat, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.specs import NormKind, RelativePositions
from c2fmae.core.training import CompileSetting, PrecisionSetting, ScheduleName, TrainingConfig
from c2fmae.eval.data_config import TrainTestSets
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.eval.training_config import BackboneInputs

if TYPE_CHECKING:
    import c2fmae.data.crops.scaled_crop

_QUARTERS = (1 / 3, 1 / 2, 2 / 3, 1)  # of the blocks: 4, 6, 8 and 12 of 12 (BEiT, MAE, CAE)


class SegmentationDataConfig(LoaderConfig, TrainTestSets):
    """Scenes with semantic maps for training and testing, and the crops of training."""

    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of a crop in training. By default, those of the backbone's training."""
    short_side: PositiveInt | None = None
    """Shorter side of an image at scale 1. By default, that of a crop."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Range of the random scale of an image, relative to `short_side`."""
    max_class_share: Fraction = 0.75
    """Draw the position of a crop again, at most 10 times, while one class has this share of its labelled pixels."""
    flip: UnitInterval = 0.5
    """Probability of a horizontal flip."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue."""
    fraction: Fraction = 1.0
    """Fraction of the training images to use. A larger fraction contains a smaller one of the same seed."""
    allow_label_stride: bool = False
    """Accept maps with a label at every s-th pixel only, whose results are not those of published protocols."""

    def build_crop(self, size: tuple[int, int]) -> "c2fmae.data.crops.scaled_crop.ScaledCrop":
        """Return the transform that cuts a training sample of this size."""
        from c2fmae.data.crops.scaled_crop import ScaledCrop

        return ScaledCrop(
            size=size,
            short_side=self.short_side or min(size),
            scale=self.scale,
            max_class_share=self.max_class_share,
            flip=self.flip,
            distort=self.distort,
        )


class SegmentInputs(BackboneInputs):
    """Initial weights, segmenter, data and test."""

    head: SegmentationHeadConfig = Field(default_factory=SegmentationHeadConfig)
    """The head, and its options."""
    depths: tuple[PositiveInt, ...] | None = None
    """Blocks whose outputs the head takes, counted from 1. By default the last; for a head on several maps, a third, a
    half, two thirds and all of them."""
    normed: bool = False
    """Normalise the output of the last block."""
    norm: NormKind = "batch"
    """Norm of the pyramid and the head: of the batch, of groups of channels, or of all channels."""
    norm_is_local: bool = False
    """Accept batch norms whose statistics are those of a part of the batch, where a step is divided into parts. Results
    then depend on the division."""
    relative: RelativePositions = "none"
    """A learned bias of attention for each offset of two patches, zero at the start (BEiT, MAE)."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    """Weight of the auxiliary head's loss."""
    data: SegmentationDataConfig = SegmentationDataConfig()
    testing: TestingConfig = TestingConfig()

    def resolve_depths(self, num_blocks: int) -> tuple[int, ...]:
        """Return the blocks whose outputs the head takes.

        >>> config = SegmentInputs(kind="segmentation", init="a")
        >>> config.resolve_depths(12), config.resolve_depths(4)
        ((4, 6, 8, 12), (1, 2, 3, 4))
        """
        if self.depths is not None:
            return self.depths
        num_maps = len(getattr(self.head.options, "rescales", (1,)))
        fractions = _QUARTERS if num_maps == len(_QUARTERS) else [(1 + index) / num_maps for index in range(num_maps)]
        return tuple(max(round(fraction * num_blocks), 1) for fraction in fractions)


class SegmentTraining(TrainingConfig):
    """Training settings with the paper's defaults for a ViT-B on ADE20K."""

    steps: PositiveInt | None = 160_000
    batch_size: PositiveInt = 16
    lr: Annotated[float, Field(gt=0)] | None = 4e-4
    warmup_steps: Annotated[int, Field(ge=0)] | None = 1500
    warmup_start: UnitInterval | None = 1e-6
    schedule: ScheduleName = "linear"
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    precision: PrecisionSetting = "auto"
    compile: CompileSetting = "off"


class SegmentConfig(ExperimentConfig, SegmentInputs):  # in this order YAML begins with the inputs
    """Everything that determines a training of a segmenter, how it is saved and what is logged."""

    kind: Literal["segmentation"] = "segmentation"
    training: SegmentTraining = SegmentTraining()

    @model_validator(mode="after")
    def _check(self) -> "SegmentConfig":
        if self.training.sharded and self.training.ema is not None:
            raise UserError("training.sharded: sharded averages cannot be evaluated. Set training.ema to null")
        return self
