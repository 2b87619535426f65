"""Config of fine-tuning. It needs no torch."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from c2fmae.config.data import LoadingConfig
from c2fmae.config.migrations import migrate_finetuning
from c2fmae.core.config import Config, Fraction, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.specs import DropRate, Pooling
from c2fmae.core.training import CompileSetting, PrecisionSetting, TrainingConfig
from c2fmae.eval.data_config import TrainTestConfig
from c2fmae.eval.training_config import BackboneInputs

if TYPE_CHECKING:
    import c2fmae.data.transforms

GranularityNames = Annotated[tuple[str, ...], Field(min_length=1)]


class MixingConfig(Config):
    """Mixup and CutMix. The defaults are those of MAE's fine-tuning."""

    mixup: Annotated[float, Field(ge=0)] = 0.8
    """α of the beta distribution of Mixup's weight; 0 turns Mixup off."""
    cutmix: Annotated[float, Field(ge=0)] = 1.0
    """α of CutMix, likewise."""
    chance: UnitInterval = 1.0
    """Probability that the images of a step are mixed."""
    cutmix_chance: UnitInterval = 0.5
    """Probability of CutMix instead of Mixup, where both are on."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing."""


class ClassificationDataConfig(LoadingConfig, TrainTestConfig):
    """Labelled images for training and testing, and their augmentation."""

    granularities: GranularityNames = ("rgb",)
    """Inputs in training: images, or images and maps."""
    test_with: tuple[GranularityNames, ...] = ()
    """Further inputs to test with at the end, among the granularities: `[[rgb], [semantic, rgb]]`."""
    fraction: Fraction = 1.0
    """Fraction of the training labels to use, of each class, rounded up."""
    crop: Fraction = 0.875
    """Side of the central crop in tests, as a fraction of the image's shorter side: 224 of 256 pixels are 0.875."""
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Area of a crop in training, as a fraction of the image's."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment, in its notation. With maps, without the operations that move pixels."""
    erasing: UnitInterval = 0.25
    """Probability of random erasing."""
    test_batch_size: PositiveInt = 128

    def build_augmented_view(
        self, mean: tuple[float, ...], std: tuple[float, ...], **view_options: Any
    ) -> "c2fmae.data.transforms.Transform":
        """Return the training transform of images with this mean and standard deviation."""
        from c2fmae.data.augment import AugmentedView

        random_view = self.build_training_view(**view_options)
        return AugmentedView(
            view=random_view, rand_augment=self.rand_augment, erase_prob=self.erasing, mean=mean, std=std
        )


class FinetuneInputs(BackboneInputs):
    """Initial weights, classifier and data."""

    pool: Pooling = "mean"
    """Pooling of tokens: their mean, followed by a norm of its own (MAE), or the class token."""
    granularity_dropout: DropRate = 0.0
    """Probability of leaving out each granularity in a step, so that the classifier works without it."""
    mixing: MixingConfig = MixingConfig()
    data: ClassificationDataConfig = ClassificationDataConfig()


class FinetuneTraining(TrainingConfig):
    """Training settings with the paper's defaults for fine-tuning a ViT-B."""

    epochs: Annotated[float, Field(gt=0)] | None = 100
    base_lr: Annotated[float, Field(gt=0)] | None = 5e-4
    warmup_epochs: Annotated[float, Field(ge=0)] | None = 5
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    precision: PrecisionSetting = "auto"
    compile: CompileSetting = "off"


class FinetuneConfig(ExperimentConfig, FinetuneInputs):  # in this order YAML begins with the inputs
    """Everything that determines a fine-tuning run, how it is saved and what is logged."""

    kind: Literal["finetuning"] = "finetuning"
    training: FinetuneTraining = FinetuneTraining()

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_finetuning(values)

    @model_validator(mode="after")
    def _check(self) -> "FinetuneConfig":
        for names in self.data.test_with:
            if missing := [name for name in names if name not in self.data.granularities]:
                raise UserError(f"data.test_with: {missing[0]} is not trained on. Add it to data.granularities")
        if self.training.sharded and self.training.ema is not None:
            raise UserError("training.sharded: sharded averages cannot be evaluated. Set training.ema to null")
        if self.granularity_dropout and len(self.data.granularities) == 1:
            raise UserError("granularity_dropout: there is one granularity. Set it to 0, or add to data.granularities")
        return self
