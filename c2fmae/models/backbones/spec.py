"""What a backbone is, in words that go into a JSON file and come back."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.models.config import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig

Pooling = Literal["mean", "cls"]


class BackboneSpec(Config):
    """All that a backbone is but its weights."""

    encoder: EncoderConfig
    image_size: tuple[PositiveInt, PositiveInt]
    """Height and width of the photos that it learned from; it takes any that its patch divides."""
    channels: Annotated[dict[str, PositiveInt], Field(min_length=1)] = Field({"rgb": 3})
    """What it takes, coarse to fine: channels of photos, classes of id maps."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """By which photos in [0, 1] are standardised, by channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = IMAGENET_STD
    pool: Pooling = "mean"
    """How a photo's tokens become one vector where nobody says otherwise: their mean, or the global token."""
    has_fc_norm: bool = False
    """Whether its norm comes behind the pooling."""
    class_names: tuple[str, ...] = ()
    """Of the semantic maps' ids."""

    @model_validator(mode="after")
    def _check(self) -> "BackboneSpec":
        for name in self.channels:
            GRANULARITIES.get(name)
        for setting in ("mean", "std"):
            if len(getattr(self, setting)) != self.channels.get("rgb", 3):
                raise UserError(f"{setting}: expected a number for each channel of rgb")
        return self
