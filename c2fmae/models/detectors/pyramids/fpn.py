"""Feature2Pyramid with a feature pyramid network: maps from several blocks of a ViT, and a top-down path."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.specs import NormKind
from c2fmae.models.feature_pyramid import FeatureMaps, FeaturePyramid, add_top_level


class FeaturePyramidNetwork(nn.Module):
    """Maps of a ViT, rescaled as in BEiT and CAE, and the network of Lin et al. (2017) as in mmdet.

    The map of each block is projected (1×1), added to the coarser one, which is repeated to its size, and smoothed
    (3×3).
    """

    def __init__(
        self, dim: int, channels: int, rescales: Sequence[float], norm: NormKind, *, has_top_level: bool
    ) -> None:
        super().__init__()
        self.has_top_level = has_top_level
        self.rescale = FeaturePyramid(dim, rescales, norm)
        self.lateral_convs = nn.ModuleList(nn.Conv2d(dim, channels, 1) for _ in rescales)
        self.fpn_convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in rescales)

    def forward(self, maps: FeatureMaps) -> list[Float[Tensor, "batch channels _ _"]]:
        """Return the maps from fine to coarse."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, self.rescale(maps), strict=True)]
        merged = laterals[-1:]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + _double(merged[0], lateral))
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]
        return add_top_level(outputs) if self.has_top_level else outputs


def _double(
    x: Float[Tensor, "batch channels _ _"], like: Float[Tensor, "batch channels rows columns"]
) -> Float[Tensor, "batch channels rows columns"]:
    """Repeat each cell twice in both directions. The last row and column are repeated once more for an odd size."""
    rows, columns = like.shape[2:]
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, :rows, :columns]
    missing = (columns - x.shape[3], rows - x.shape[2])
    return F.pad(x, (0, missing[0], 0, missing[1]), mode="replicate") if any(missing) else x
