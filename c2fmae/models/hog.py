"""Histograms of oriented gradients."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.targets import TARGETS, PixelTarget, to_at_least_float32


def compute_hog(
    images: Float[Tensor, "batch channels height width"], *, bins: int, cell: int, window: int | None = None
) -> Float[Tensor, "batch channels bins rows columns"]:
    """Return the histogram of unsigned gradient directions of each cell × cell square and channel, of length 1.

    Sobel gradients, with reflected borders, are added to the bin of their direction with their magnitudes as weights.
    With `window`, magnitudes are multiplied by a Gaussian over each window × window square, as in MaskFeat.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect").flatten(0, 1)
    # By sums of slices: a convolution would have the precision of autocast.
    above, middle, below = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    smooth, difference = above + 2 * middle + below, above - below
    along_row = smooth[:, :, :-2] - smooth[:, :, 2:]
    along_column = difference[:, :, :-2] + 2 * difference[:, :, 1:-1] + difference[:, :, 2:]
    weights = torch.hypot(along_row, along_column)
    height, width = weights.shape[1:]
    if window is not None:
        windows = _create_gaussian(window, weights).repeat(height // window + 1, width // window + 1)
        weights = weights * windows[:height, :width]
    direction = torch.atan2(along_row, along_column) / math.pi * bins
    bin_idx = direction.floor().long() % bins
    votes = weights.new_zeros(len(weights), bins, height, width)
    votes.scatter_(1, bin_idx.unsqueeze(1), weights.unsqueeze(1))
    histograms = F.normalize(F.avg_pool2d(votes, cell) * cell**2, dim=1)
    return histograms.unflatten(0, images.shape[:2])  # type: ignore[no-any-return]


def _create_gaussian(side: int, like: Tensor) -> Float[Tensor, "side side"]:
    """Return a Gaussian with a standard deviation of half the side, whose values add up to 1."""
    place = torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2
    line = (-0.5 * (place / (side / 2)) ** 2).exp()
    square = line.unsqueeze(1) * line
    return square / square.sum()


@TARGETS.register("hog")
@dataclass(frozen=True)
class HogTarget(PixelTarget):
    """Histograms of oriented gradients of a patch's cells (MaskFeat); mean squared error."""

    kinds: ClassVar = ("image",)
    has_maps: ClassVar = False
    bins: int = field(default=9, kw_only=True)
    cell: int = field(default=8, kw_only=True)
    """Side of a cell in pixels; a divisor of the patch size."""
    window: int | None = field(default=16, kw_only=True)
    """Side in pixels of the squares in which pixels in the middle count more; None means that all count equally."""

    def __post_init__(self) -> None:
        if self.bins < 1 or (self.window is not None and self.window < 1):
            raise UserError(f"bins, window: expected at least 1, got {self.bins} and {self.window}. Change them")
        if self.cell < 1 or self.patch % self.cell:
            raise UserError(f"cell: expected a divisor of the patch size {self.patch}, got {self.cell}. Change it")

    @property
    def size(self) -> int:
        """The number of channels times bins times cells."""
        return self.channels * self.bins * (self.patch // self.cell) ** 2

    def true_values(self, maps: Tensor) -> Float[Tensor, "batch patch value"]:
        """Return the histograms of each patch, ordered by channel, bin, row and column."""
        histograms = compute_hog(to_at_least_float32(maps), bins=self.bins, cell=self.cell, window=self.window)
        side = self.patch // self.cell
        tiles = histograms.unflatten(4, (-1, side)).unflatten(3, (-1, side))  # batch channel bin row y column x
        return tiles.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)  # type: ignore[no-any-return]
