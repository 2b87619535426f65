"""Config of a training of a detector. It needs no torch."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from c2fmae.config.data import LoaderConfig
from c2fmae.core.config import Fraction, PositiveFloat, PositiveInt, UnitInterval
from c2fmae.core.detector_spec import (
    AnchorSpec,
    BoxHeadSpec,
    MaskHeadSpec,
    PyramidSpec,
    RoiSpec,
    RpnSpec,
    WindowSpec,
)
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.specs import DropRate, RelativePositions
from c2fmae.core.training import CompileSetting, PrecisionSetting, ScheduleName, TrainingConfig
from c2fmae.eval.data_config import TrainTestSets
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.training_config import BackboneInputs

if TYPE_CHECKING:
    from c2fmae.data.crops.scale_jitter import ScaleJitter
    from c2fmae.data.crops.short_side import ShortSideResize

    DetectionCrop = ScaleJitter | ShortSideResize


class DetectionDataConfig(LoaderConfig, TrainTestSets):
    """Images with objects for training and testing, and the crops of training."""

    canvas: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of a fixed canvas, on which images are scaled at random, cropped and padded. By default, images
    are resized so that their shorter side is one of `sides`, and padded to the largest of a batch."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Range of the random scale of an image on a canvas. At 1 the image just fits."""
    sides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = tuple(range(480, 801, 32))
    """Without a canvas: shorter sides of images, of which each sample has one."""
    max_side: PositiveInt = 1333
    """Without a canvas: largest longer side of an image."""
    crops: bool = True
    """Without a canvas: show a random part of every second image, as DETR does."""
    flip: UnitInterval = 0.5
    """Probability of a horizontal flip."""
    by_size: bool = True
    """Without a canvas: batches of samples of similar height and width, so that little of a batch is padding."""
    min_visible: UnitInterval = 0.01
    """Fraction of an object that a sample must show, or the object is left out."""
    fraction: Fraction = 1.0
    """Fraction of the training images to use. A larger fraction contains a smaller one of the same seed."""

    @classmethod
    def resolve_data_options(cls, data: str | None, test: str | None) -> dict[str, Any]:
        """Return the settings that --data and --test stand for; without --test, `data` contains both sets."""
        if data is None or test is not None:
            return super().resolve_data_options(data, test)
        from c2fmae.data.objects import find_object_sets

        return dict(find_object_sets(data))

    @model_validator(mode="after")
    def _check_repeats(self) -> "DetectionDataConfig":
        if self.repeats > 1 and self.groups_by_size:
            raise UserError(
                "repeats: batches of similar sizes have one view of an image. Set it to 1, or by_size=false"
            )
        return self

    @property
    def groups_by_size(self) -> bool:
        """Whether a batch has samples of similar sizes: all have one size on a canvas."""
        return self.by_size and self.canvas is None

    def build_crop(self) -> "DetectionCrop":
        """Return the transform that cuts training samples."""
        options = {"flip": self.flip, "min_visible": self.min_visible}
        if self.canvas is not None:
            from c2fmae.data.crops.scale_jitter import ScaleJitter

            return ScaleJitter(canvas=self.canvas, scale=self.scale, **options)
        from c2fmae.data.crops.short_side import ShortSideResize

        return ShortSideResize(sides=self.sides, max_side=self.max_side, crops=self.crops, **options)


class DetectInputs(BackboneInputs):
    """Initial weights, detector, data and test. The defaults are those of CAE's Mask R-CNN."""

    drop_path: DropRate = 0.2
    pyramid: PyramidSpec = PyramidSpec()
    windows: WindowSpec | None = None
    """Attention in windows; null for global attention in all blocks."""
    relative: RelativePositions = "none"
    """Learned relative positions in attention, zero at the start."""
    anchors: AnchorSpec = AnchorSpec()
    rpn: RpnSpec = RpnSpec()
    rois: RoiSpec = RoiSpec()
    box_head: BoxHeadSpec = BoxHeadSpec()
    mask_head: MaskHeadSpec | None = MaskHeadSpec()
    """The mask head; null for none. Data with boxes only has none."""
    norm_is_local: bool = False
    """Accept batch norms whose statistics are those of a part of the batch, where a step is divided into parts. Results
    then depend on the division."""
    select_by: Literal["box", "mask"] = "box"
    """The best checkpoint is that with the highest AP of boxes, or of masks."""
    data: DetectionDataConfig = DetectionDataConfig()
    testing: DetectionTestingConfig = DetectionTestingConfig()


class DetectTraining(TrainingConfig):
    """Training settings with the paper's defaults for a ViT-B on COCO."""

    epochs: Annotated[float, Field(gt=0)] | None = 12
    batch_size: PositiveInt = 16
    lr: Annotated[float, Field(gt=0)] | None = 3e-4
    warmup_steps: Annotated[int, Field(ge=0)] | None = 500
    warmup_start: UnitInterval | None = 1e-3
    schedule: ScheduleName = "steps"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (9 / 12, 11 / 12)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    precision: PrecisionSetting = "auto"
    compile: CompileSetting = "off"


class DetectConfig(ExperimentConfig, DetectInputs):  # in this order YAML begins with the inputs
    """Everything that determines a training of a detector, how it is saved and what is logged."""

    kind: Literal["detection"] = "detection"
    training: DetectTraining = DetectTraining()

    @model_validator(mode="after")
    def _check(self) -> "DetectConfig":
        if self.training.sharded and self.training.ema is not None:
            raise UserError("training.sharded: sharded averages cannot be evaluated. Set training.ema to null")
        if self.training.compile != "off":
            raise UserError(
                "training.compile: is not supported for detectors, whose shapes depend on images (expected off, got "
                f"{self.training.compile}). Set it to off"
            )
        if self.select_by == "mask" and self.mask_head is None:
            raise UserError("select_by: there are no masks without a mask head. Set it to box")
        return self
