"""The simple feature pyramid of ViTDet: all maps from the last block of a ViT, without a top-down path."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.specs import NormKind
from c2fmae.models.feature_pyramid import FeatureMaps, add_top_level, create_level
from c2fmae.models.norms import create_norm


class SimpleFeaturePyramid(nn.Module):
    """A map for each rescale from one map of a ViT, as in detectron2.

    Enlarged maps have a half or a quarter of the channels. Each map is projected (1×1) and smoothed (3×3), with a norm
    after both and no bias.
    """

    def __init__(
        self, dim: int, channels: int, rescales: Sequence[float], norm: NormKind, *, has_top_level: bool
    ) -> None:
        super().__init__()
        self.has_top_level = has_top_level
        self.levels = nn.ModuleList(_create_level(dim, channels, rescale, norm) for rescale in rescales)

    def forward(self, maps: FeatureMaps) -> list[Float[Tensor, "batch channels _ _"]]:
        """Return the maps from fine to coarse, from a single map."""
        (x,) = maps
        outputs = [level(x) for level in self.levels]
        return add_top_level(outputs) if self.has_top_level else outputs


def _create_level(dim: int, channels: int, rescale: float, norm: NormKind) -> nn.Module:
    resize, width = create_level((dim, dim // 2, dim // 4), rescale, norm)
    return nn.Sequential(
        resize,
        nn.Conv2d(width, channels, 1, bias=False),
        create_norm(norm, channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        create_norm(norm, channels),
    )
