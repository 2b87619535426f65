"""Config of a method of masked autoencoding: inputs, masks, model, predictions and losses."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.masking import MaskingConfig
from c2fmae.config.method import METHOD_KINDS, ImageSize, MethodConfig, check_granularity_keys, check_unique
from c2fmae.config.migrations import migrate_method
from c2fmae.config.target import TargetConfig
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES
from c2fmae.core.specs import LossAveraging


class HeadPlan(NamedTuple):
    """One prediction head. Its name is that of its granularity, with the name of the target for further targets."""

    name: str
    stage: str
    granularity: str
    target: TargetConfig


@METHOD_KINDS.register("masked")
class MaskedConfig(MethodConfig):
    """A method of masked autoencoding."""

    implementation: ClassVar[str] = "c2fmae.methods.masked.build:build_masked_autoencoding"

    kind: Literal["masked"] = "masked"
    name: Annotated[str, Field(min_length=1)] = "c2fmae"
    granularities: Annotated[tuple[str, ...], Field(min_length=1)] = COARSE_TO_FINE
    """Inputs of the encoder and outputs of the decoder, coarse to fine."""
    early_image_sizes: tuple[tuple[Annotated[float, Field(gt=0, lt=1)], ImageSize], ...] = ()
    """Sizes of training images before `image_size`, each with the fraction of the run at which it ends, such as
    `[[0.4, [160, 160]], [0.7, [192, 192]]]`. Steps with smaller images are faster."""
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
    """Visible patches per image of `image_size`, over all granularities. By default, a sixth of them, or a quarter of a
    single one. Images of other sizes have the same fraction."""
    concentration: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    """Concentration of the Dirichlet distribution that divides the visible patches, by granularity, 1 by default."""
    mask_noise: Literal["rows", "batch"] = "rows"
    """The random numbers that a process draws for the masks of a step: those of its own samples, or those of the global
    batch, as version 0.1 did. The two give different masks of the same distribution."""
    initialisation: Literal["split", "fused"] = "split"
    """Xavier initialisation of queries, keys and values as three matrices (MultiMAE) or as one (MAE)."""

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_method(values)

    @model_validator(mode="after")
    def _check(self) -> "MaskedConfig":
        for setting in ("targets", "concentration"):
            check_granularity_keys(setting, getattr(self, setting))
        self._check_predictions()
        ends = [end for end, _ in self.early_image_sizes]
        if ends != sorted(set(ends)):
            raise UserError(f"early_image_sizes: expected increasing fractions of the run, got {ends}. Sort them")
        return self

    def _check_predictions(self) -> None:
        for name, targets in self.targets.items():
            if not targets:
                raise UserError(f"targets.{name}: expected at least one target, got none. Remove the key")
            for target in targets:
                _check_kind(name, target)
            check_unique(f"targets.{name}", tuple(target.name for target in targets))
        order = self.decoder.order or self.granularities
        check_unique("decoder.options.order", order)
        for name in order:
            if name not in self.granularities:
                raise UserError(f"decoder.options.order: {unknown_name_error('stage', name, self.granularities)}")
        if missing := [name for name in self.granularities if name not in order]:
            raise UserError(f"decoder.options.order: {', '.join(missing)} is missing. List all granularities")
        losses = {head.name for head in self.head_plans()}
        for name in self.loss_weights:
            if name not in losses and name not in GRANULARITIES:
                raise UserError(f"loss_weights: {unknown_name_error('loss', name, losses)}")

    @property
    def required_maps(self) -> tuple[str, ...]:
        """The granularities that the data must have: those of the model, and those that guide the masks."""
        from c2fmae.masking.policies import get_required_maps

        return tuple(dict.fromkeys((*self.granularities, *get_required_maps(self.masking.build()))))

    @property
    def image_size_schedule(self) -> tuple[tuple[float, ImageSize], ...]:
        """The sizes of training images, each with the fraction of the run at which it ends."""
        return (*self.early_image_sizes, *super().image_size_schedule)

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

    def resolve_num_visible(self, num_patches: int, full_num_patches: int | None = None) -> int:
        """Return the number of visible patches of an image, given the patches of one granularity.

        `full_num_patches` are those of an image of `image_size`, by default the same.
        """
        if self.num_visible is None:
            return round(len(self.granularities) * num_patches / (6 if len(self.granularities) > 1 else 4))
        full_num_patches = full_num_patches or num_patches
        if self.num_visible > len(self.granularities) * full_num_patches:
            count = f"{len(self.granularities)} × {full_num_patches}"
            raise UserError(f"num_visible: expected at most {count} patches, got {self.num_visible}. Set it lower")
        return round(self.num_visible * num_patches / full_num_patches)


def _check_kind(granularity: str, target: TargetConfig) -> None:
    entry = target.registry().get(target.name)
    kind, kinds = GRANULARITIES.get(granularity).kind, getattr(entry, "kinds", None)
    if kinds is not None and kind not in kinds:
        raise UserError(f"targets.{granularity}: {target.name!r} is for maps of kind {' or '.join(kinds)}, not {kind}")
