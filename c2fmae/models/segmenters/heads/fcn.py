"""A head of plain convolutions on one map."""

from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.segmentation_head_options import FcnOptions
from c2fmae.models.convolution import ConvModule
from c2fmae.models.feature_pyramid import FeatureMaps
from c2fmae.models.segmenters.heads.registry import SEGMENTATION_HEADS, HeadLayout, HeadModules


class FcnHead(nn.Module):
    """3×3 convolutions and a classifier on one of the maps: mmseg's `FCNHead`."""

    def __init__(self, layout: HeadLayout, options: FcnOptions, *, index: int = -1) -> None:
        super().__init__()
        self.index = index
        self.convs = nn.Sequential(
            *(
                ConvModule(options.channels if number else layout.dim, options.channels, 3, layout.norm)
                for number in range(options.num_convs)
            )
        )
        self.dropout = nn.Dropout2d(options.dropout)
        self.classifier = nn.Conv2d(options.channels if options.num_convs else layout.dim, layout.num_classes, 1)

    def forward(self, maps: FeatureMaps) -> Float[Tensor, "batch class rows columns"]:
        """Return the logits at the resolution of the map."""
        return self.classifier(self.dropout(self.convs(maps[self.index])))  # type: ignore[no-any-return]


@SEGMENTATION_HEADS.register("fcn", "3×3 convolutions and a classifier on the last map.", options=FcnOptions)
def create_fcn(layout: HeadLayout, options: FcnOptions) -> HeadModules:
    """Create the head."""
    return HeadModules(head=FcnHead(layout, options))
