"""The pyramid of feature maps that is made from the maps of one size that a ViT has."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.specs import NormKind
from c2fmae.models.norms import create_norm

FeatureMaps = Sequence[Float[Tensor, "batch dim _ _"]]
"""Feature maps of the same images, each of its own size."""


class FeaturePyramid(nn.Module):
    """Maps of different sizes, each from one map of a ViT: mmseg's `Feature2Pyramid`, as in BEiT and MAE.

    Maps are enlarged by transposed convolutions, 4 times with a norm and GELU between two of them, and reduced by
    maximum pooling.
    """

    def __init__(self, dim: int, rescales: Sequence[float], norm: NormKind) -> None:
        super().__init__()
        self.levels = nn.ModuleList(create_level((dim, dim, dim), rescale, norm)[0] for rescale in rescales)

    def forward(self, maps: FeatureMaps) -> FeatureMaps:
        """Return a map of each level from the map at the same position."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


class MaxPool(nn.Module):
    """Maximum pooling of squares of this side. Incomplete ones are left out, unless a side of the map is shorter."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch channels rows columns"]:
        """Return the smaller map."""
        return F.max_pool2d(x, self.side, ceil_mode=min(x.shape[-2:]) < self.side)


def add_top_level(maps: FeatureMaps) -> list[Float[Tensor, "batch dim _ _"]]:
    """Return maps with one more, of every second cell of the last."""
    return [*maps, maps[-1][:, :, ::2, ::2]]


def create_level(widths: tuple[int, int, int], rescale: float, norm: NormKind) -> tuple[nn.Module, int]:
    """Return what changes the size of a map by a factor, and the channels of its output.

    `widths` are the channels of a map, and of the maps that are 2 and 4 times as large.
    """
    first, second, third = widths
    if rescale == 4:
        level = nn.Sequential(_double(first, second), create_norm(norm, second), nn.GELU(), _double(second, third))
        return level, third
    if rescale == 2:
        return _double(first, second), second
    return nn.Identity() if rescale == 1 else MaxPool(round(1 / rescale)), first


def _double(in_channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
