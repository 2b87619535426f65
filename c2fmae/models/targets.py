"""What a head is to predict for each patch, how wrong it is, and how a prediction is shown.

A target is a frozen dataclass made from `channels` (of a photo; classes of an id map) and `patch` (in cells of the
map). An outside package adds one by registering it in `TARGETS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.core.registry import Registry
from c2fmae.models.patches import patchify, unpatchify

MapTensor = Shaped[Tensor, "batch *channels height width"]
PatchPredictions = Float[Tensor, "batch patch value"]

_EPS = 1e-6
"""Added to a patch's variance, as in MAE: flat patches have none."""


@runtime_checkable
class PredictionTarget(Protocol):
    """One thing to predict of every patch.

    It may say in `kinds` of which kinds of maps, and in `needs_true_map` that its pictures need the true map.
    """

    @property
    def size(self) -> int:
        """How many values are predicted of a patch."""
        ...

    def count_valid(self, maps: MapTensor) -> Int[Tensor, "batch patch"]:
        """Count what of each patch can be right or wrong."""
        ...

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return the error of each patch, summed over what `count_valid` counts, in float32 or wider."""
        ...

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return the predictions as maps like those given, which lend statistics where the target has none."""
        ...


TARGETS: Registry[Callable[..., PredictionTarget]] = Registry("target")

DEFAULT_TARGETS = {"image": "pixels", "ids": "labels", "continuous": "absolute"}
"""What is predicted of a granularity unless a config says otherwise."""


@TARGETS.register("pixels")
@dataclass(frozen=True, kw_only=True)
class PixelTarget:
    """Standardised pixels; mean squared error."""

    kinds: ClassVar = ("image", "continuous")
    channels: int
    patch: int

    @property
    def size(self) -> int:
        """Channels of every pixel."""
        return self.channels * self.patch**2

    def count_valid(self, maps: MapTensor) -> Int[Tensor, "batch patch"]:
        """Every patch counts once: its error is a mean over its pixels."""
        rows, columns = (side // self.patch for side in maps.shape[-2:])
        return torch.ones(maps.shape[0], rows * columns, dtype=torch.int64, device=maps.device)

    def true_values(self, maps: MapTensor) -> Float[Tensor, "batch patch value"]:
        """Return what the predictions are compared with."""
        return _to_at_least_float32(patchify(maps, self.patch))

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return each patch's mean squared error."""
        return F.mse_loss(_to_at_least_float32(predictions), self.true_values(maps), reduction="none").mean(dim=2)

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return the pixels as a photo."""
        grid = (maps.shape[-2] // self.patch, maps.shape[-1] // self.patch)
        return unpatchify(predictions.float(), grid, self.channels)


@TARGETS.register("normalized_pixels")
@dataclass(frozen=True, kw_only=True)
class NormalizedPixelTarget(PixelTarget):
    """Pixels less their patch's mean, over its standard deviation; mean squared error."""

    needs_true_map: ClassVar = True

    def true_values(self, maps: MapTensor) -> Float[Tensor, "batch patch value"]:
        """Return the patches without their own mean and variance."""
        pixels = _to_at_least_float32(patchify(maps, self.patch))
        mean, deviation = _patch_mean_std(pixels)
        return (pixels - mean) / deviation

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return a photo, each patch with the mean and deviation of the true one."""
        mean, deviation = _patch_mean_std(patchify(maps, self.patch).float())
        return super().predictions_to_maps(predictions.float() * deviation + mean, maps)


@TARGETS.register("absolute")
@dataclass(frozen=True, kw_only=True)
class AbsoluteErrorTarget(PixelTarget):
    """Standardised values of a continuous map; mean absolute error."""

    needs_true_map: ClassVar = True

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return each patch's mean absolute error."""
        return F.l1_loss(_to_at_least_float32(predictions), self.true_values(maps), reduction="none").mean(dim=2)


@TARGETS.register("labels")
@dataclass(frozen=True, kw_only=True)
class ClassIdTarget:
    """The class of every cell of an id map; cross-entropy, unlabelled cells left out."""

    kinds: ClassVar = ("ids",)
    channels: int
    patch: int

    @property
    def size(self) -> int:
        """Classes of every cell."""
        return self.channels * self.patch**2

    def count_valid(self, maps: MapTensor) -> Int[Tensor, "batch patch"]:
        """Count the cells that somebody labelled."""
        return (patchify(maps, self.patch) != IGNORE).sum(dim=2)

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return each patch's cross-entropy, summed over its cells."""
        true_ids = patchify(maps, self.patch).long()
        logits = _to_at_least_float32(predictions).reshape(-1, self.channels)
        error = F.cross_entropy(logits, true_ids.flatten(), ignore_index=IGNORE, reduction="none")
        return error.view_as(true_ids).sum(dim=2)

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return the likeliest class of every cell."""
        ids = predictions.unflatten(2, (-1, self.channels)).argmax(dim=3).to(maps.dtype)
        return unpatchify(ids, (maps.shape[-2] // self.patch, maps.shape[-1] // self.patch))


def _patch_mean_std(pixels: Float[Tensor, "batch patch value"]) -> tuple[Tensor, Tensor]:
    """Return each patch's mean and standard deviation: the unbiased variance, as in MAE."""
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return mean, (variance + _EPS).sqrt()


def _to_at_least_float32(values: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return values in float32, or as they are if that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
