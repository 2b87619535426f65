"""The settings of all figures. Importing this module does not import torch."""

from typing import Annotated

from pydantic import Field, model_validator

from c2fmae.config.data import DataSourceOption
from c2fmae.config.masking import MaskingConfig
from c2fmae.core.config import Config, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError

SideLength = Annotated[int, Field(ge=1, le=4096)]
"""Pixels."""


class MaskedScenesConfig(Config):
    """Scenes, the size of their crop, and the masks of their patches."""

    data: DataSourceOption = Field(default="generated")
    """A folder, shards, a pattern of shards, or a registered data set: `{name: generated, options: {domain: photo}}`.
    """
    scenes: PositiveInt = 4
    """Number of scenes, from the start of the data."""
    size: SideLength = 224
    """Height and width of the cropped scenes."""
    patch: SideLength = 16
    seed: int = 0
    """Seed of the masks, and of generated scenes."""
    hidden: UnitInterval = 0.75
    """Fraction of the patches that is masked."""
    masking: MaskingConfig = Field(default_factory=MaskingConfig)

    @model_validator(mode="after")
    def _check_patch_size(self) -> "MaskedScenesConfig":
        if self.size % self.patch:
            raise UserError(f"patch: expected a divisor of size={self.size}, got {self.patch}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size // self.patch, self.size // self.patch


class MasksFigureConfig(MaskedScenesConfig):
    """Settings of `c2fmae view masks`."""

    progress: tuple[UnitInterval, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points of training at which the masking policy is shown: 0 is the first step, 1 the end."""


class ScheduleFigureConfig(MaskedScenesConfig):
    """Settings of `c2fmae view schedule`, which draws all blends and ignores `masking.options.blend`."""

    scenes: PositiveInt = 64
    points: PositiveInt = 101
    """Points of training at which the curves are computed."""

    @model_validator(mode="after")
    def _check_policy(self) -> "ScheduleFigureConfig":
        if self.masking.name != "progressive":
            raise UserError(f"masking.name: expected 'progressive', which has a schedule, got {self.masking.name!r}")
        return self


class ReconstructionFigureConfig(Config):
    """Settings of `c2fmae view reconstruct`."""

    data: DataSourceOption | None = None
    """A folder, shards, a pattern of shards, or a registered data set. By default, the held-out data of the run."""
    scenes: PositiveInt = 6
    """At most this many scenes, evenly spaced over the data."""
    seed: int = 0
    """Seed of the masks, and of generated scenes."""


class BackboneFigureConfig(Config):
    """Settings of `c2fmae view attention` and `c2fmae view pca`."""

    data: DataSourceOption = Field(default="generated")
    """A folder, shards, a pattern of shards, or a registered data set: `{name: generated, options: {domain: photo}}`.
    """
    scenes: PositiveInt = 4
    """At most this many scenes, evenly spaced over the data."""
    size: tuple[SideLength, SideLength] | None = None
    """Height and width of the images; by default those that each backbone was trained on."""
    layer: PositiveInt | None = None
    """The block whose output is drawn, counted from 1; by default the last."""
    seed: int = 0
    """Seed of generated scenes."""
