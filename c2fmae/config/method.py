"""Config of a method of masked autoencoding: inputs, masks, model, predictions and losses."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.masking import MaskingConfig
from c2fmae.config.migrations import migrate_method
from c2fmae.config.target import TargetConfig
from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec, EncoderConfig, LossAveraging

ImageSide = Annotated[int, Field(ge=1, le=4096)]


class HeadPlan(NamedTuple):
    """One prediction head. Its name is that of its granularity, with the name of the target for further targets."""

    name: str
    stage: str
    granularity: str
    target: TargetConfig


class MethodConfig(Config):
    """A method of masked autoencoding."""

    name: Annotated[str, Field(min_length=1)] = "c2fmae"
    granularities: Annotated[tuple[str, ...], Field(min_length=1)] = COARSE_TO_FINE
    """Inputs of the encoder and outputs of the decoder, coarse to fine."""
    image_size: tuple[ImageSide, ImageSide] = (224, 224)
    """Height and width of training images. The model accepts all multiples of its patch size."""
    channels: dict[str, PositiveInt] = Field({})
    """Channels of images and number of classes of id maps. By default, those of the data or the granularity."""
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)
    targets: dict[str, tuple[TargetConfig, ...]] = Field({})
    """Prediction targets by granularity. By default, `pixels` of images and `labels` of id maps."""
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Loss weights by granularity, 1 by default. The key of a further target has its name, as in
    `rgb_normalized_pixels`."""
    loss_average: LossAveraging = "samples"
    """Average over each image's hidden cells and then over images, or over all hidden cells at once."""
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    num_visible: Annotated[int, Field(ge=0)] | None = None
    """Visible patches per image, over all granularities. By default, a sixth of them, or a quarter of a single one."""
    concentration: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    """Concentration of the Dirichlet distribution that divides the visible patches, by granularity, 1 by default."""
    mask_noise: Literal["rows", "batch"] = "rows"
    """The random numbers that a process draws for the masks of a step: those of its own samples, or those of the global
    batch, as version 0.1 did. The two give different masks of the same distribution."""
    initialisation: Literal["split", "fused"] = "split"
    """Xavier initialisation of queries, keys and values as three matrices (MultiMAE) or as one (MAE)."""
    mean: tuple[float, ...] | None = None
    """Mean of images in [0, 1], by channel. By default, the data's, or else ImageNet's for 3 channels and 0.5."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Standard deviation of images, by channel, with the same defaults; 0.25 where the mean is 0.5."""

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_method(values)

    @model_validator(mode="after")
    def _check(self) -> "MethodConfig":
        self._check_granularities()
        self._check_predictions()
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

    def _check_granularities(self) -> None:
        for name in self.granularities:
            GRANULARITIES.get(name)
        _check_unique("granularities", self.granularities)
        # Settings of granularities that the method does not use are allowed: removing a granularity is one change.
        for setting in ("channels", "targets", "concentration"):
            for name in getattr(self, setting):
                if name not in GRANULARITIES:
                    raise UserError(f"{setting}: {unknown_name_error('granularity', name, GRANULARITIES)}")

    def _check_predictions(self) -> None:
        for name, targets in self.targets.items():
            if not targets:
                raise UserError(f"targets.{name}: expected at least one target, got none. Remove the key")
            for target in targets:
                _check_kind(name, target)
            _check_unique(f"targets.{name}", tuple(target.name for target in targets))
        order = self.decoder.order or self.granularities
        _check_unique("decoder.options.order", order)
        for name in order:
            if name not in self.granularities:
                raise UserError(f"decoder.options.order: {unknown_name_error('stage', name, self.granularities)}")
        if missing := [name for name in self.granularities if name not in order]:
            raise UserError(f"decoder.options.order: {', '.join(missing)} is missing. List all granularities")
        losses = {head.name for head in self.head_plans()}
        for name in self.loss_weights:
            if name not in losses and name not in GRANULARITIES:
                raise UserError(f"loss_weights: {unknown_name_error('loss', name, losses)}")

    def num_channels(self, granularity: str) -> int:
        """Return the channels of images, or the number of classes of id maps."""
        return self.channels.get(granularity, GRANULARITIES.get(granularity).channels)

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

    def head_plans(self) -> list[HeadPlan]:
        """Return all predictions, in the order of the stages."""
        from c2fmae.models.targets import DEFAULT_TARGETS

        plans = []
        for granularity in self.decoder.order or self.granularities:
            default = TargetConfig(name=DEFAULT_TARGETS[GRANULARITIES.get(granularity).kind])
            for number, target in enumerate(self.targets.get(granularity, (default,))):
                name = granularity if number == 0 else f"{granularity}_{target.name}"
                stage = name if self.decoder.stage_per == "target" else granularity
                plans.append(HeadPlan(name, stage, granularity, target))
        return plans

    def resolve_num_visible(self, num_patches: int) -> int:
        """Return the number of visible patches per image, given the patches of one granularity."""
        total = len(self.granularities) * num_patches
        if self.num_visible is None:
            return round(total / (6 if len(self.granularities) > 1 else 4))
        if self.num_visible > total:
            count = f"{len(self.granularities)} × {num_patches}"
            raise UserError(f"num_visible: expected at most {count} patches, got {self.num_visible}. Set it lower")
        return self.num_visible

    def mean_and_std(self, granularity: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and standard deviation for the standardisation of images, by channel."""
        channels, is_rgb = self.num_channels(granularity), granularity == "rgb"
        default = (IMAGENET_MEAN, IMAGENET_STD) if is_rgb and channels == 3 else ((0.5,) * channels, (0.25,) * channels)
        return (is_rgb and self.mean) or default[0], (is_rgb and self.std) or default[1]


def _check_kind(granularity: str, target: TargetConfig) -> None:
    entry = target.registry().get(target.name)
    kind, kinds = GRANULARITIES.get(granularity).kind, getattr(entry, "kinds", None)
    if kinds is not None and kind not in kinds:
        raise UserError(f"targets.{granularity}: {target.name!r} is for maps of kind {' or '.join(kinds)}, not {kind}")


def _check_unique(key: str, names: tuple[str, ...]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{key}: {name!r} is listed twice")
