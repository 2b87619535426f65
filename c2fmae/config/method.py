"""What the configs of all methods have: images, an encoder, and the kind that names the class of the other settings."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.registry import Registry
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec, EncoderConfig

ImageSide = Annotated[int, Field(ge=1, le=4096)]
ImageSize = tuple[ImageSide, ImageSide]
"""Height and width."""

METHODS: "Registry[Callable[[], Any]]" = Registry("method")
"""Functions that return the config of a method, by name; of the house's, `c2fmae.config.presets` has all."""

METHOD_KINDS: "Registry[type[MethodConfig]]" = Registry("kind of method")
"""Config classes of methods, by the `kind` in configs."""


class MethodConfig(Config):
    """What the config of every method has. `kind` names the class in `METHOD_KINDS` that has the other settings."""

    implementation: ClassVar[str]
    """The function that builds the method from a config and a `seed`, as `module:name`. It is imported when it is
    called, since configs do not import torch."""

    kind: str
    name: Annotated[str, Field(min_length=1)]
    granularities: Annotated[tuple[str, ...], Field(min_length=1)] = ("rgb",)
    """Inputs of the encoder, coarse to fine."""
    image_size: ImageSize = (224, 224)
    """Height and width of training images. The model accepts all multiples of its patch size."""
    channels: dict[str, PositiveInt] = Field({})
    """Channels of images and number of classes of id maps. By default, those of the data or the granularity."""
    encoder: EncoderConfig = EncoderConfig()
    mean: tuple[float, ...] | None = None
    """Mean of images in [0, 1], by channel. By default, the data's, or else ImageNet's for 3 channels and 0.5."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Standard deviation of images, by channel, with the same defaults; 0.25 where the mean is 0.5."""

    @model_validator(mode="after")
    def _check_inputs(self) -> "MethodConfig":
        for name in self.granularities:
            GRANULARITIES.get(name)
        check_unique("granularities", self.granularities)
        # Settings of granularities that the method does not use are allowed: removing a granularity is one change.
        check_granularity_keys("channels", self.channels)
        for name in self.granularities:
            kind, channels = GRANULARITIES.get(name).kind, self.num_channels(name)
            if kind == "ids" and channels > IGNORE:
                raise UserError(f"channels.{name}: expected at most {IGNORE} classes, got {channels}")
            if kind == "continuous" and channels != 1:
                raise UserError(f"channels.{name}: expected 1 channel of a continuous map, got {channels}")
        num_channels = self.num_channels("rgb")
        for setting in ("mean", "std"):
            values = getattr(self, setting)
            if values is not None and len(values) != num_channels:
                expected = f"{num_channels} numbers, one for each channel of rgb"
                raise UserError(f"{setting}: expected {expected}, got {len(values)}")
        return self

    @property
    def required_maps(self) -> tuple[str, ...]:
        """The granularities that training scenes must have."""
        return self.granularities

    @property
    def image_size_schedule(self) -> tuple[tuple[float, ImageSize], ...]:
        """The sizes of training images, each with the fraction of the run at which it ends."""
        return ((1.0, self.image_size),)

    @property
    def num_image_sizes(self) -> int:
        """The number of different sizes of images that the model is trained on."""
        return len({size for _, size in self.image_size_schedule})

    def choose_image_size(self, progress: float) -> ImageSize:
        """Return the size of training images, given the fraction of the run that is complete."""
        return next((size for end, size in self.image_size_schedule if progress < end), self.image_size)

    def num_channels(self, granularity: str) -> int:
        """Return the channels of images, or the number of classes of id maps."""
        return self.channels.get(granularity, GRANULARITIES.get(granularity).channels)

    def mean_and_std(self, granularity: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and standard deviation for the standardisation of images, by channel."""
        channels, is_rgb = self.num_channels(granularity), granularity == "rgb"
        default = (IMAGENET_MEAN, IMAGENET_STD) if is_rgb and channels == 3 else ((0.5,) * channels, (0.25,) * channels)
        return (is_rgb and self.mean) or default[0], (is_rgb and self.std) or default[1]

    def backbone_spec(self, class_names: tuple[str, ...] = ()) -> BackboneSpec:
        """Return the spec of the backbone that this method trains, with the class names of the data."""
        mean, std = self.mean_and_std("rgb")
        return BackboneSpec(
            encoder=self.encoder,
            image_size=self.image_size,
            channels={name: self.num_channels(name) for name in self.granularities},
            mean=mean,
            std=std,
            class_names=class_names,
        )


def check_unique(key: str, names: tuple[str, ...]) -> None:
    """Raise a `UserError` if a name is listed twice."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{key}: {name!r} is listed twice")


def check_granularity_keys(setting: str, values: Mapping[str, object]) -> None:
    """Raise a `UserError` if a key is not a granularity."""
    for name in values:
        if name not in GRANULARITIES:
            raise UserError(f"{setting}: {unknown_name_error('granularity', name, GRANULARITIES)}")
