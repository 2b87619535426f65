"""A method as a recipe writes it: what is seen, hidden, predicted and compared."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec, EncoderConfig, LossAveraging
from c2fmae.masking.config import MaskingConfig
from c2fmae.models.config import DecoderConfig
from c2fmae.models.targets import DEFAULT_TARGETS, TARGETS

ImageSide = Annotated[int, Field(ge=1, le=4096)]


class HeadPlan(NamedTuple):
    """One prediction: its name is that of its granularity, longer for a second target."""

    name: str
    stage: str
    granularity: str
    target: str


class MethodConfig(Config):
    """One way to pre-train a ViT by what it cannot see."""

    name: Annotated[str, Field(min_length=1)] = "c2fmae"
    granularities: Annotated[tuple[str, ...], Field(min_length=1)] = COARSE_TO_FINE
    """What the encoder sees and the decoder predicts, coarse to fine."""
    image_size: tuple[ImageSide, ImageSide] = (224, 224)
    """Height and width in training; the model takes any that its patch divides."""
    channels: dict[str, PositiveInt] = Field({})
    """Channels of photos, classes of id maps, where they are not those of the granularity: 3 for rgb, 133, 32."""
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    targets: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field({})
    """What is predicted of a granularity, where it is not `pixels` of photos and `labels` of id maps."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Of the losses that do not count once, by granularity; that of a second target is `rgb_normalized_pixels`."""
    average: LossAveraging = "samples"
    """A loss is the mean of the images' means over what is hidden, or the mean over all hidden cells alike."""
    masking: MaskingConfig = MaskingConfig()
    num_visible: Annotated[int, Field(ge=0)] | None = None
    """Patches of an image that the encoder sees; a sixth of all, or a quarter of a lone granularity's, unless given."""
    concentration: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    """Of the Dirichlet law by which the visible patches fall to the granularities, where it is not 1."""
    initialisation: Literal["split", "fused"] = "split"
    """Whether queries, keys and values are three matrices to Xavier's law (MultiMAE) or one (MAE)."""
    mean: tuple[float, ...] | None = None
    """Of photos in [0, 1], by channel; ImageNet's for three channels and otherwise 0.5, unless given."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """As `mean`; 0.25 where that is 0.5."""

    @model_validator(mode="after")
    def _check(self) -> "MethodConfig":
        names = self.granularities
        for name in names:
            GRANULARITIES.get(name)
        _check_unique("granularities", names)
        # Of a granularity that is left out, settings may stay: leaving it out is then one change.
        for setting in ("channels", "targets", "concentration"):
            for name in getattr(self, setting):
                if name not in GRANULARITIES:
                    raise UserError(f"{setting}: {unknown_name_error('granularity', name, GRANULARITIES)}")
        for name, targets in self.targets.items():
            for target in targets:
                _check_target(name, target)
            _check_unique(f"targets.{name}", targets)
        order = self.decoder.order or names
        _check_unique("decoder.order", order)
        for name in order:
            if name not in names:
                raise UserError(f"decoder.order: {unknown_name_error('stage', name, names)}")
        if missing := [name for name in names if name not in order]:
            raise UserError(f"decoder.order: leaves out {', '.join(missing)}")
        losses = {head.name for head in self.head_plans()}
        for name in self.weights:
            if name not in losses and name not in GRANULARITIES:
                raise UserError(f"weights: {unknown_name_error('loss', name, losses)}")
        for name in names:
            kind, channels = GRANULARITIES.get(name).kind, self.num_channels(name)
            if kind == "ids" and channels > IGNORE:
                raise UserError(f"channels.{name}: at most {IGNORE} ids can be told apart, got {channels}")
            if kind == "continuous" and channels != 1:
                raise UserError(f"channels.{name}: a continuous map has 1 channel, got {channels}")
        for setting in ("mean", "std"):
            values = getattr(self, setting)
            if values is not None and len(values) != self.num_channels("rgb"):
                expected = f"{self.num_channels('rgb')} numbers, one a channel of rgb"
                raise UserError(f"{setting}: expected {expected}, got {len(values)}")
        return self

    def num_channels(self, granularity: str) -> int:
        """Return the channels of photos, the classes of id maps."""
        return self.channels.get(granularity, GRANULARITIES.get(granularity).channels)

    def backbone_spec(self) -> BackboneSpec:
        """Return what is kept of the model when it is trained."""
        mean, std = self.mean_and_std("rgb")
        channels = {name: self.num_channels(name) for name in self.granularities}
        return BackboneSpec(encoder=self.encoder, image_size=self.image_size, channels=channels, mean=mean, std=std)

    def head_plans(self) -> list[HeadPlan]:
        """Return all predictions, in the order of the stages."""
        plans = []
        for granularity in self.decoder.order or self.granularities:
            kind = GRANULARITIES.get(granularity).kind
            for number, target in enumerate(self.targets.get(granularity, (DEFAULT_TARGETS[kind],))):
                name = granularity if number == 0 else f"{granularity}_{target}"
                stage = name if self.decoder.stage_per == "target" else granularity
                plans.append(HeadPlan(name, stage, granularity, target))
        return plans

    def resolve_num_visible(self, num_patches: int) -> int:
        """Return how many patches of an image are visible, given the patches of one granularity."""
        total = len(self.granularities) * num_patches
        if self.num_visible is None:
            return round(total / (6 if len(self.granularities) > 1 else 4))
        if self.num_visible > total:
            count = f"{len(self.granularities)} × {num_patches}"
            raise UserError(f"num_visible: {self.num_visible} patches cannot be visible of {count}")
        return self.num_visible

    def mean_and_std(self, granularity: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and standard deviation by which photos are standardised."""
        channels, is_rgb = self.num_channels(granularity), granularity == "rgb"
        default = (IMAGENET_MEAN, IMAGENET_STD) if is_rgb and channels == 3 else ((0.5,) * channels, (0.25,) * channels)
        return (is_rgb and self.mean) or default[0], (is_rgb and self.std) or default[1]


def _check_target(granularity: str, name: str) -> None:
    kind, kinds = GRANULARITIES.get(granularity).kind, getattr(TARGETS.get(name), "kinds", None)
    if kinds is not None and kind not in kinds:
        raise UserError(f"targets.{granularity}: {name!r} is for maps of kind {' or '.join(kinds)}, not {kind}")


def _check_unique(key: str, names: tuple[str, ...]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{key}: {name!r} is there twice")
