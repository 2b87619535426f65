"""Specs of encoders, backbones, classifiers and segmenters: everything about a model except its weights, without torch.

A spec is stored with the weights, in checkpoints and exported folders, so that the model can be built again.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.labels import ClassInfo, LabelInfo

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Pooling = Literal["mean", "cls"]
NormKind = Literal["batch", "group", "layer"]
"""Norms of what follows a backbone: of batches, of groups of channels, or of all channels of a pixel."""
RelativePositions = Literal["none", "bias", "decomposed"]
"""Relative positions in attention: none, a learned bias for each offset between two patches (`bias`, as in BEiT), or
learned embeddings of the offsets of rows and of columns, multiplied with the queries (`decomposed`, as in detectron2).
"""
DropRate = Annotated[float, Field(ge=0, lt=1)]
LossAveraging = Literal["samples", "cells"]
"""Average a loss over each image's hidden cells first and then over images, or over all hidden cells at once."""


class EncoderConfig(Config):
    """The ViT that encodes visible patches. Sizes that are not set are those of the named ViT."""

    name: Annotated[str, Field(min_length=1)] = "vit_base_patch16_224"
    """Name of a plain ViT in timm. Its weights are initialised from the seed."""
    patch_size: PositiveInt | None = None
    """Side of a patch in pixels."""
    dim: Annotated[int, Field(ge=4, multiple_of=4)] | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    """Hidden width of the MLPs, as a multiple of `dim`."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of the norms: 1e-6 in timm, MAE and MultiMAE, 1e-12 in Hugging Face's ViTs."""
    drop_path: DropRate = 0.0
    has_norm: bool = False
    """Normalise the latents before the decoder, as MAE does and MultiMAE does not."""
    keep_positions: bool = False
    """Use the position embedding of a timm ViT's weights instead of sines and cosines."""
    grad_checkpointing: bool = False
    """Recompute the blocks in the backward pass instead of storing their activations: less memory, slower."""
    position_grid: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns of patches whose sines and cosines are stretched over the image. By default, those of its size.

    Loading and fine-tuning at another image size set it; for pre-training from `init`, set it to the source's grid.
    """

    @model_validator(mode="before")
    @classmethod
    def _rename_keys(cls, values: Any) -> Any:
        """Accept `checkpoint`, the name of `grad_checkpointing` in files of version 0.1."""
        if isinstance(values, dict) and "checkpoint" in values:
            values = {"grad_checkpointing" if key == "checkpoint" else key: value for key, value in values.items()}
        return values

    @model_validator(mode="after")
    def _check(self) -> "EncoderConfig":
        if self.dim and self.num_heads and self.dim % self.num_heads:
            raise UserError(f"num_heads: {self.num_heads} heads do not divide dim={self.dim}")
        if self.position_grid and self.keep_positions:
            raise UserError("position_grid: is for sines and cosines. Leave it out, or set keep_positions=false")
        return self

    def vit_kwargs(self) -> dict[str, Any]:
        """Return the arguments of `create_vit` that differ from the named ViT."""
        kwargs = dict(  # noqa: C408 - arguments of a function
            patch_size=self.patch_size,
            embed_dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            norm_eps=self.norm_eps,
        )
        return {name: value for name, value in kwargs.items() if value is not None}


class BackboneSpec(Config):
    """Everything about a backbone except its weights."""

    encoder: EncoderConfig
    image_size: tuple[PositiveInt, PositiveInt]
    """Height and width of the training images. The backbone accepts all multiples of its patch size."""
    channels: Annotated[dict[str, PositiveInt], Field(min_length=1)] = Field({"rgb": 3})
    """Input granularities, coarse to fine: channels of images, number of classes of id maps."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of images in [0, 1], by channel, for standardisation."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = IMAGENET_STD
    pool: Pooling = "mean"
    """Default pooling of an image's tokens into one vector: their mean, or the class token."""
    has_fc_norm: bool = False
    """Apply the final norm to the pooled vector instead of the tokens."""
    class_names: tuple[str, ...] = ()
    """Names of the semantic maps' ids."""

    @model_validator(mode="after")
    def _check(self) -> "BackboneSpec":
        for name in self.channels:
            GRANULARITIES.get(name)
        num_channels = self.channels.get("rgb", 3)
        for setting in ("mean", "std"):
            if (count := len(getattr(self, setting))) != num_channels:
                raise UserError(f"{setting}: expected {num_channels} numbers, one for each channel of rgb, got {count}")
        return self


class ClassifierSpec(Config):
    """Everything about a classifier except its weights."""

    backbone: BackboneSpec
    labels: Annotated[tuple[LabelInfo | None, ...], Field(min_length=1)]
    """Labels by index of the logit; null for a class without a known name."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the central crop for evaluation, as a fraction of the image's shorter side: 224 of 256 pixels."""


class HeadSpec(Config):
    """A segmentation head by its registered name, with its options."""

    name: Annotated[str, Field(min_length=1)] = "upernet"
    options: dict[str, Any] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class SegmenterSpec(Config):
    """Everything about a segmenter except its weights."""

    backbone: BackboneSpec
    """Its image size is that of the training crops; it has a last norm only if a map needs one."""
    classes: Annotated[tuple[ClassInfo, ...], Field(min_length=1, max_length=IGNORE)]
    """Classes by index of the logit, which is the semantic id."""
    head: HeadSpec = HeadSpec()
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Blocks whose outputs the head takes, counted from 1. The encoder ends with the last of them."""
    normed: bool = False
    """Normalise the output of the last block."""
    norm: NormKind = "batch"
    """Norm of the pyramid and the head."""
    relative: RelativePositions = "none"


def spec_identity(spec: Config) -> str:
    """Return the JSON that is part of digests of weights.

    Its keys are those of version 0.1, so that cached features and results of that version stay valid. A position grid
    is a key only where it changes the features.
    """
    identity = spec.model_dump_json().replace('"grad_checkpointing":', '"checkpoint":')
    return identity.replace(',"position_grid":null', "")
