"""Settings of logging and evaluation during pre-training."""

from typing import Annotated, Literal

from pydantic import Field

from c2fmae.config.data import DataSourceOption
from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.experiment_config import WatchingConfig

OnlineProbeName = Literal["knn", "linear"]


class OnlineProbesConfig(Config):
    """Probes of the encoder during pre-training: how well its features of images predict their labels."""

    data: DataSourceOption
    """Labelled images: a folder with a training and a test set (with `test`, the training set), or `generated`."""
    test: DataSourceOption | None = None
    """The test set, if `data` does not contain it."""
    names: Annotated[tuple[OnlineProbeName, ...], Field(min_length=1)] = ("knn", "linear")
    """The probes: 20 nearest neighbours, or a linear classifier."""
    every: PositiveInt | None = None
    """Steps between probes. By default, a tenth of the run; the untrained and the last encoder are always probed."""
    train_samples: PositiveInt = 2048
    """Largest number of training images, drawn once with a fixed seed. They are stored in memory."""
    test_samples: PositiveInt = 1024
    """Largest number of test images."""


class PretrainWatchingConfig(WatchingConfig):
    """Logging, evaluation, probes and figures during pre-training. Results do not depend on these settings."""

    probes: OnlineProbesConfig | None = None
    """Probes of the encoder on labelled images. By default, none."""
