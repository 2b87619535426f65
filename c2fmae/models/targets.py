"""Prediction targets: the values that a head predicts for a patch, their error, and their conversion back to maps.

A target is a frozen dataclass with the fields `channels` (of an image; classes of an id map) and `patch` (side in
cells of the map). Keyword-only fields are its options. Other packages add targets by registering them in `TARGETS`.
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
"""Added to the variance of a patch, as in MAE: a constant patch has variance 0."""


@runtime_checkable
class PredictionTarget(Protocol):
    """Values to predict for each patch.

    Optional attributes: `kinds`, the kinds of maps that it is for (all by default), `needs_true_map`, whether
    `predictions_to_maps` needs the true map (False by default), and `has_maps`, False if maps do not follow from the
    predictions, so that `predictions_to_maps` is never called.
    """

    @property
    def size(self) -> int:
        """The number of predicted values per patch."""
        ...

    def count_valid(self, maps: MapTensor) -> Int[Tensor, "batch patch"]:
        """Return the number of values or cells of each patch that have a true value."""
        ...

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return the error of each patch, summed over what `count_valid` counts, in at least float32."""
        ...

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return the predictions in the form of `maps`, the true maps, whose statistics relative targets need."""
        ...


TARGETS: Registry[Callable[..., PredictionTarget]] = Registry("target")

DEFAULT_TARGETS = {"image": "pixels", "ids": "labels", "continuous": "absolute"}
"""The default target by kind of granularity."""


@TARGETS.register("pixels")
@dataclass(frozen=True)
class PixelTarget:
    """Standardised pixels; mean squared error."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "continuous")
    channels: int
    patch: int

    @property
    def size(self) -> int:
        """The number of pixels times channels."""
        return self.channels * self.patch**2

    def count_valid(self, maps: MapTensor) -> Int[Tensor, "batch patch"]:
        """Return 1 for each patch: its error is the mean over its pixels."""
        rows, columns = (side // self.patch for side in maps.shape[-2:])
        return torch.ones(maps.shape[0], rows * columns, dtype=torch.int64, device=maps.device)

    def true_values(self, maps: MapTensor) -> Float[Tensor, "batch patch value"]:
        """Return the values that are to be predicted."""
        return to_at_least_float32(patchify(maps, self.patch))

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return each patch's mean squared error."""
        return F.mse_loss(to_at_least_float32(predictions), self.true_values(maps), reduction="none").mean(dim=2)

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return the predicted pixels as images."""
        grid = (maps.shape[-2] // self.patch, maps.shape[-1] // self.patch)
        return unpatchify(predictions.float(), grid, self.channels)


@TARGETS.register("normalized_pixels")
@dataclass(frozen=True)
class NormalizedPixelTarget(PixelTarget):
    """Pixels normalised by the mean and standard deviation of their patch (MAE); mean squared error."""

    needs_true_map: ClassVar = True

    def true_values(self, maps: MapTensor) -> Float[Tensor, "batch patch value"]:
        """Return the patches, each normalised by its own mean and standard deviation."""
        pixels = to_at_least_float32(patchify(maps, self.patch))
        mean, std = _patch_mean_std(pixels)
        return (pixels - mean) / std

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return images whose patches have the mean and standard deviation of the true patches."""
        mean, std = _patch_mean_std(patchify(maps, self.patch).float())
        return super().predictions_to_maps(predictions.float() * std + mean, maps)


@TARGETS.register("absolute")
@dataclass(frozen=True)
class AbsoluteErrorTarget(PixelTarget):
    """Standardised values of a continuous map; mean absolute error."""

    needs_true_map: ClassVar = True

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return each patch's mean absolute error."""
        return F.l1_loss(to_at_least_float32(predictions), self.true_values(maps), reduction="none").mean(dim=2)


@TARGETS.register("labels")
@dataclass(frozen=True)
class ClassIdTarget:
    """The class of each cell of an id map; cross-entropy, unlabelled cells are excluded."""

    kinds: ClassVar = ("ids",)
    channels: int
    patch: int

    @property
    def size(self) -> int:
        """The number of cells times classes."""
        return self.channels * self.patch**2

    def count_valid(self, maps: MapTensor) -> Int[Tensor, "batch patch"]:
        """Return the number of labelled cells of each patch."""
        return (patchify(maps, self.patch) != IGNORE).sum(dim=2)

    def error(self, predictions: PatchPredictions, maps: MapTensor) -> Float[Tensor, "batch patch"]:
        """Return each patch's cross-entropy, summed over its cells."""
        true_ids = patchify(maps, self.patch).long()
        logits = to_at_least_float32(predictions).reshape(-1, self.channels)
        error = F.cross_entropy(logits, true_ids.flatten(), ignore_index=IGNORE, reduction="none")
        return error.view_as(true_ids).sum(dim=2)

    def predictions_to_maps(self, predictions: PatchPredictions, maps: MapTensor) -> MapTensor:
        """Return the most probable class of each cell."""
        ids = predictions.unflatten(2, (-1, self.channels)).argmax(dim=3).to(maps.dtype)
        return unpatchify(ids, (maps.shape[-2] // self.patch, maps.shape[-1] // self.patch))


def _patch_mean_std(pixels: Float[Tensor, "batch patch value"]) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each patch; the variance is the unbiased one, as in MAE."""
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return mean, (variance + _EPS).sqrt()


def to_at_least_float32(values: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
