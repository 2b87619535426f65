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
        self.levels = nn.ModuleList(_create_level(dim, rescale, norm) for rescale in rescales)

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


def _create_level(dim: int, rescale: float, norm: NormKind) -> nn.Module:
    if rescale == 4:
        return nn.Sequential(_double(dim), create_norm(norm, dim), nn.GELU(), _double(dim))
    if rescale == 2:
        return _double(dim)
    return nn.Identity() if rescale == 1 else MaxPool(round(1 / rescale))


def _double(dim: int) -> nn.Module:
    return nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
