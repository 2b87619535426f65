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

from c2fmae.core.registry import Registry
from c2fmae.core.scene import IGNORE
from c2fmae.models.patches import patchify, unpatchify

Maps = Shaped[Tensor, "batch *channels height width"]
Predictions = Float[Tensor, "batch patch value"]

_EPS = 1e-6
"""Added to a patch's variance, as in MAE: flat patches have none."""


@runtime_checkable
class Target(Protocol):
    """One thing to predict of every patch.

    It may say in `kinds` of which kinds of maps, and in `is_relative` that its pictures need the true map.
    """

    @property
    def size(self) -> int:
        """How many values are predicted of a patch."""
        ...

    def valid(self, maps: Maps) -> Int[Tensor, "batch patch"]:
        """Count what of each patch can be right or wrong."""
        ...

    def error(self, predictions: Predictions, maps: Maps) -> Float[Tensor, "batch patch"]:
        """Return the error of each patch, summed over what `valid` counts, in float32 or wider."""
        ...

    def picture(self, predictions: Predictions, maps: Maps) -> Maps:
        """Return the predictions as maps like those given, which lend statistics where the target has none."""
        ...


TARGETS: Registry[Callable[..., Target]] = Registry("target")

TARGET_OF_KIND = {"image": "pixels", "ids": "labels", "continuous": "absolute"}
"""What is predicted of a granularity unless a config says otherwise."""


@TARGETS.register("pixels")
@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Standardised pixels; mean squared error."""

    kinds: ClassVar = ("image", "continuous")
    channels: int
    patch: int

    @property
    def size(self) -> int:
        """Channels of every pixel."""
        return self.channels * self.patch**2

    def valid(self, maps: Maps) -> Int[Tensor, "batch patch"]:
        """Every patch counts once: its error is a mean over its pixels."""
        rows, columns = (side // self.patch for side in maps.shape[-2:])
        return torch.ones(maps.shape[0], rows * columns, dtype=torch.int64, device=maps.device)

    def wanted(self, maps: Maps) -> Float[Tensor, "batch patch value"]:
        """Return what the predictions are compared with."""
        return _wide(patchify(maps, self.patch))

    def error(self, predictions: Predictions, maps: Maps) -> Float[Tensor, "batch patch"]:
        """Return each patch's mean squared error."""
        return F.mse_loss(_wide(predictions), self.wanted(maps), reduction="none").mean(dim=2)

    def picture(self, predictions: Predictions, maps: Maps) -> Maps:
        """Return the pixels as a photo."""
        grid = (maps.shape[-2] // self.patch, maps.shape[-1] // self.patch)
        return unpatchify(predictions.float(), grid, self.channels)


@TARGETS.register("normalized_pixels")
@dataclass(frozen=True, kw_only=True)
class NormalizedPixels(Pixels):
    """Pixels less their patch's mean, over its standard deviation; mean squared error."""

    is_relative: ClassVar = True

    def wanted(self, maps: Maps) -> Float[Tensor, "batch patch value"]:
        """Return the patches without their own mean and variance."""
        pixels = _wide(patchify(maps, self.patch))
        mean, deviation = _statistics(pixels)
        return (pixels - mean) / deviation

    def picture(self, predictions: Predictions, maps: Maps) -> Maps:
        """Return a photo, each patch with the mean and deviation of the true one."""
        mean, deviation = _statistics(patchify(maps, self.patch).float())
        return super().picture(predictions.float() * deviation + mean, maps)


@TARGETS.register("absolute")
@dataclass(frozen=True, kw_only=True)
class Absolute(Pixels):
    """Standardised values of a continuous map; mean absolute error."""

    is_relative: ClassVar = True

    def error(self, predictions: Predictions, maps: Maps) -> Float[Tensor, "batch patch"]:
        """Return each patch's mean absolute error."""
        return F.l1_loss(_wide(predictions), self.wanted(maps), reduction="none").mean(dim=2)


@TARGETS.register("labels")
@dataclass(frozen=True, kw_only=True)
class Labels:
    """The class of every cell of an id map; cross-entropy, unlabelled cells left out."""

    kinds: ClassVar = ("ids",)
    channels: int
    patch: int

    @property
    def size(self) -> int:
        """Classes of every cell."""
        return self.channels * self.patch**2

    def valid(self, maps: Maps) -> Int[Tensor, "batch patch"]:
        """Count the cells that somebody labelled."""
        return (patchify(maps, self.patch) != IGNORE).sum(dim=2)

    def error(self, predictions: Predictions, maps: Maps) -> Float[Tensor, "batch patch"]:
        """Return each patch's cross-entropy, summed over its cells."""
        wanted = patchify(maps, self.patch).long()
        logits = _wide(predictions).reshape(-1, self.channels)
        error = F.cross_entropy(logits, wanted.flatten(), ignore_index=IGNORE, reduction="none")
        return error.view_as(wanted).sum(dim=2)

    def picture(self, predictions: Predictions, maps: Maps) -> Maps:
        """Return the likeliest class of every cell."""
        ids = predictions.unflatten(2, (-1, self.channels)).argmax(dim=3).to(maps.dtype)
        return unpatchify(ids, (maps.shape[-2] // self.patch, maps.shape[-1] // self.patch))


def _statistics(pixels: Float[Tensor, "batch patch value"]) -> tuple[Tensor, Tensor]:
    """Return each patch's mean and standard deviation: the unbiased variance, as in MAE."""
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return mean, (variance + _EPS).sqrt()


def _wide(values: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return values in float32, or as they are if that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
