"""Patch features of a backbone, for labellers that need no labels."""

from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config
from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.data.geometry import resized_crop_image
from c2fmae.eval.cache import compute_weights_digest
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.precision import make_autocast
from c2fmae.models.backbones import load_backbone


class PatchFeatureConfig(Config):
    """Settings of the features of patches."""

    path_options: ClassVar[tuple[str, ...]] = ("backbone",)

    backbone: str
    """A run, a checkpoint, an export, timm:NAME, or anything else that `load_backbone` reads."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Step of the checkpoint of a run. By default, the newest."""
    use_ema: bool = False
    """Use the averaged weights of the run."""
    layer: Annotated[int, Field(ge=1)] | None = None
    """Block whose outputs are the features, from 1. By default, the last, with its norm."""
    grid_size: Annotated[int, Field(ge=2, le=128)] = 28
    """Patches along each side, to which images are resized, whatever their aspect ratio."""


class PatchFeatures:
    """A backbone that returns the features of the patches of an image.

    Images go through it one by one: those of a batch would differ in the last bits with its size. The features of the
    last images, as many as are in a batch, are stored for a second labeller. Images and features must not be modified.
    """

    def __init__(self, config: PatchFeatureConfig, context: LabellerContext) -> None:
        self._config, self._device, self._autocast = config, context.device, make_autocast(context)
        self._backbone = load_backbone(config.backbone, step=config.step, use_ema=config.use_ema).to(self._device)
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=context.batch_size)
        depth, self._layer = self._backbone.depth, config.layer or self._backbone.depth
        if self._backbone.spec.channels.get("rgb") != 3:
            raise UserError(f"{config.backbone}: does not take RGB images. Use a backbone that does")
        if self._layer > depth:
            raise UserError(f"layer: {config.backbone} has {depth} blocks, got {self._layer}. Choose a block from 1")

    @property
    def dim(self) -> int:
        """The number of features of a patch."""
        return self._backbone.dim

    def compute(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "dim rows columns"]:
        """Return the features of an image, on the device of the backbone."""
        for known, features in self._recent:
            if known is image:
                return features
        features = self._compute(image)
        self._recent.append((image, features))
        return features

    @torch.inference_mode()
    def _compute(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "dim rows columns"]:
        side = self._config.grid_size * self._backbone.patch
        resized = resized_crop_image(image, CropBox(0, 0, image.shape[1], image.shape[2]), (side, side))
        standardised = self._backbone.standardise(resized[None].to(self._device))
        with self._autocast():
            (features,) = self._backbone.feature_maps(standardised, [self._layer])
        return features[0].float()

    def describe(self) -> Mapping[str, Any]:
        """Return a digest of the weights, and the settings."""
        weights = {"sha256": compute_weights_digest(self._backbone)}
        return {"weights": weights, "layer": self._layer, "grid_size": self._config.grid_size}


def open_patch_features(config: PatchFeatureConfig, context: LabellerContext) -> PatchFeatures:
    """Return patch features, the same object for all labellers of a command with the same settings."""
    settings = PatchFeatureConfig(**{name: getattr(config, name) for name in PatchFeatureConfig.model_fields})
    key = (settings, context.device, context.precision)
    if key not in context.shared:
        context.shared[key] = PatchFeatures(settings, context)
    features: PatchFeatures = context.shared[key]
    return features
