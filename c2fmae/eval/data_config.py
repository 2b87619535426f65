"""Settings of the training and the test set of a probe or a fine-tuning run."""

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from c2fmae.config.data import DatasetConfig, DataSourceOption
from c2fmae.config.migrations import migrate_labelled_data
from c2fmae.core.config import Config, Fraction, PositiveInt
from c2fmae.core.errors import UserError, check_patch_multiples
from c2fmae.core.splits import find_train_test

if TYPE_CHECKING:
    import c2fmae.data.transforms
    import c2fmae.models.backbones.backbone


class TrainTestSets(Config):
    """A training set and a test set."""

    train: DataSourceOption | None = None
    """Scenes with labels or maps to train on: a folder, shards, a pattern of shards, or `generated`."""
    test: DataSourceOption | None = None
    """Scenes to evaluate on."""
    limit: PositiveInt | None = None
    """Largest number of images of each set, evenly spaced over it. By default, all."""

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_labelled_data(values)

    @classmethod
    def resolve_data_options(cls, data: str | None, test: str | None) -> dict[str, Any]:
        """Return the settings that --data and --test stand for; without --test, `data` contains both sets."""
        if data is None:
            return {} if test is None else {"test": test}
        return find_train_test(data) if test is None else {"train": data, "test": test}

    @model_validator(mode="after")
    def _check(self) -> "TrainTestSets":
        if self.train is not None and _are_same(self.train, self.test):
            raise UserError("test: expected other scenes than the training set's. Use another set")
        return self


class TrainTestConfig(TrainTestSets):
    """A training set, a test set, and the crop of their images."""

    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width. By default, those of the backbone's training."""
    crop: Fraction = 1.0
    """Side of the central crop, as a fraction of the image's shorter side. The usual 224 of 256 pixels are 0.875."""

    def resolve_image_size(self, backbone: "c2fmae.models.backbones.backbone.Backbone") -> tuple[int, int]:
        """Return the height and width of images."""
        return self.image_size or backbone.spec.image_size

    def make_view(self, backbone: "c2fmae.models.backbones.backbone.Backbone") -> "c2fmae.data.transforms.CentralView":
        """Return the transform that crops scenes for a backbone."""
        from c2fmae.data.transforms import CentralView
        from c2fmae.models.patches import label_stride

        size = self.resolve_image_size(backbone)
        check_patch_multiples(size, backbone.patch, "of this backbone")
        return CentralView(size=size, crop=self.crop, label_stride=label_stride(backbone.patch))


def _are_same(train: DataSourceOption, test: DataSourceOption | None) -> bool:
    """Return whether two sources have the same scenes. Generated sets have different seeds by default."""
    if isinstance(train, DatasetConfig) and isinstance(test, DatasetConfig):
        options = train.given_options()
        is_seeded = train.name != "generated" or "seed" in options
        return train.name == test.name and options == test.given_options() and is_seeded
    return train == test
