"""A linear classifier of each patch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.segmentation_head_options import LinearOptions
from c2fmae.models.feature_pyramid import FeatureMaps
from c2fmae.models.norms import create_norm
from c2fmae.models.segmenters.heads.registry import SEGMENTATION_HEADS, HeadLayout, HeadModules


class LinearHead(nn.Module):
    """A norm and a 1×1 convolution on the concatenated maps, as in DINOv2."""

    def __init__(self, layout: HeadLayout, options: LinearOptions) -> None:
        super().__init__()
        channels = layout.dim * layout.num_maps
        self.norm = create_norm(layout.norm, channels)
        self.dropout = nn.Dropout2d(options.dropout)
        self.classifier = nn.Conv2d(channels, layout.num_classes, 1)

    def forward(self, maps: FeatureMaps) -> Float[Tensor, "batch class rows columns"]:
        """Return one logit of each class for each patch."""
        return self.classifier(self.dropout(self.norm(torch.cat([*maps], dim=1))))  # type: ignore[no-any-return]


@SEGMENTATION_HEADS.register(
    "linear",
    "A norm and a linear classifier on the last map, or on several concatenated (DINOv2).",
    options=LinearOptions,
)
def create_linear(layout: HeadLayout, options: LinearOptions) -> HeadModules:
    """Create the head."""
    return HeadModules(head=LinearHead(layout, options))
