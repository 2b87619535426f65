"""What decides a fine-tuning."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from c2fmae.core.config import Config, Fraction, PositiveInt, UnitInterval, read_yaml
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.specs import Pooling
from c2fmae.core.training import TrainingConfig
from c2fmae.data import Transform
from c2fmae.data.augment import AugmentedView
from c2fmae.data.config import LoadingConfig
from c2fmae.eval.classification.mixing import MixingConfig
from c2fmae.eval.datasets import TrainTestConfig

GranularityNames = Annotated[tuple[str, ...], Field(min_length=1)]


def is_finetuned(run_dir: Path) -> bool:
    """Return whether a run's folder is that of a fine-tuning."""
    config_path = run_dir / "config.yaml"
    return config_path.is_file() and "mixing" in read_yaml(config_path)


class ClassificationDataConfig(LoadingConfig, TrainTestConfig):
    """Photos with labels, to learn from and to be tried on, and how they are changed in training."""

    granularities: GranularityNames = ("rgb",)
    """What is learned from: photos, or photos and maps."""
    test_with: tuple[GranularityNames, ...] = ()
    """Of these, what else it is tried with at the end: `[[rgb], [semantic, rgb]]`."""
    fraction: Fraction = 1.0
    """Share of the training labels that are used, of each class, rounded up."""
    crop: Fraction = 0.875
    """How much of a photo's largest central part is shown in tests; 0.875 is 224 of 256 pixels."""
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Share of the photo's area that a crop in training covers."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment in its words; where there are maps, without what moves things."""
    erasing: UnitInterval = 0.25
    """How often a part of a photo gives way to noise."""
    test_batch_size: PositiveInt = 128

    def build_augmented_view(self, mean: tuple[float, ...], std: tuple[float, ...], **view_options: Any) -> Transform:
        """Return what makes training samples of photos with this mean and deviation."""
        random_view = self.build_training_view(**view_options)
        return AugmentedView(
            view=random_view, rand_augment=self.rand_augment, erase_prob=self.erasing, mean=mean, std=std
        )


class FinetuneInputs(Config):
    """Which classifier begins to learn."""

    init: Annotated[str, Field(min_length=1)]
    """Whose ViT it begins with: a run, a checkpoint, or whatever else `load_backbone` takes."""
    from_scratch: bool = False
    """Draw its weights anew: the row to compare others with."""
    step: PositiveInt | None = None
    average: bool = False
    allow_missing: tuple[str, ...] = ()
    """As `load_backbone` takes them."""
    pool: Pooling = "mean"
    """How its tokens become one vector: their mean, with a norm of its own behind it (MAE), or the global token."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    train_blocks: Annotated[int, Field(ge=0)] | None = None
    """Train the last so many blocks alone, with the norms behind them and the head; all, unless given."""
    granularity_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How often each granularity is left out of a step, so that it learns to do without."""
    mixing: MixingConfig = MixingConfig()
    data: ClassificationDataConfig = ClassificationDataConfig()


class FinetuneTraining(TrainingConfig):
    """A training whose settings are the paper's for fine-tuning a ViT-B, unless given."""

    epochs: Annotated[float, Field(gt=0)] | None = 100
    base_lr: Annotated[float, Field(gt=0)] | None = 5e-4
    warmup_epochs: Annotated[float, Field(ge=0)] | None = 5
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)


class FinetuneConfig(ExperimentConfig, FinetuneInputs):  # in this order YAML begins with what learns
    """Everything that decides what a classifier learns, and how it is kept and shown."""

    training: FinetuneTraining = FinetuneTraining()

    @model_validator(mode="after")
    def _check(self) -> "FinetuneConfig":
        for names in self.data.test_with:
            if missing := [name for name in names if name not in self.data.granularities]:
                raise UserError(f"data.test_with: {missing[0]} is none of data.granularities: it is not learned from")
        if self.training.sharded and self.training.ema is not None:
            raise UserError("training.sharded: averages in parts cannot be tried. Set training.ema to null")
        if self.granularity_dropout and len(self.data.granularities) == 1:
            raise UserError("granularity_dropout: there is one granularity. Set it to 0, or add to data.granularities")
        return self
