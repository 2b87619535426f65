"""UPerNet: a pyramid of feature maps, pooling of the coarsest, and a top-down path."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.segmentation_head_options import UperNetOptions
from c2fmae.core.specs import NormKind
from c2fmae.models.convolution import ConvModule, resize
from c2fmae.models.feature_pyramid import FeatureMaps, FeaturePyramid
from c2fmae.models.segmenters.heads.fcn import FcnHead
from c2fmae.models.segmenters.heads.registry import SEGMENTATION_HEADS, HeadLayout, HeadModules


class UperNetHead(nn.Module):
    """The head of UPerNet (Xiao et al., 2018) as in mmseg, at the resolution of its first map."""

    def __init__(
        self,
        dim: int,
        channels: int,
        num_maps: int,
        num_classes: int,
        *,
        pool_scales: Sequence[int],
        dropout: float,
        norm: NormKind,
    ) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(dim, channels, 1, norm)) for scale in pool_scales
        )
        self.bottleneck = ConvModule(dim + len(pool_scales) * channels, channels, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvModule(dim, channels, 1, norm) for _ in range(num_maps - 1))
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, norm) for _ in range(num_maps - 1))
        self.fpn_bottleneck = ConvModule(num_maps * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: FeatureMaps) -> Float[Tensor, "batch class rows columns"]:
        """Return the logits of maps from fine to coarse."""
        top = maps[-1]
        pooled = [resize(module(top), top) for module in self.psp_modules]
        outputs = [self.bottleneck(torch.cat([top, *pooled], dim=1))]
        above = outputs[0]
        laterals = zip(reversed(maps[:-1]), reversed(self.lateral_convs), reversed(self.fpn_convs), strict=True)
        for x, lateral_conv, fpn_conv in laterals:
            lateral = lateral_conv(x)
            above = lateral + resize(above, lateral)
            outputs.append(fpn_conv(above))
        finest = outputs[-1]
        fused = self.fpn_bottleneck(torch.cat([finest, *(resize(x, finest) for x in outputs[-2::-1])], dim=1))
        return self.classifier(self.dropout(fused))  # type: ignore[no-any-return]


@SEGMENTATION_HEADS.register(
    "upernet",
    "UPerNet on a pyramid of four maps, with an auxiliary head (BEiT, MAE, C2FMAE).",
    options=UperNetOptions,
)
def create_upernet(layout: HeadLayout, options: UperNetOptions) -> HeadModules:
    """Create the pyramid, UPerNet and the auxiliary FCN."""
    if layout.num_maps != len(options.rescales):
        raise UserError(
            f"depths: upernet needs one for each of its {len(options.rescales)} rescales, got {layout.num_maps}. "
            "Change depths, or head.options.rescales"
        )
    auxiliary = None
    if options.auxiliary is not None:
        index = options.rescales.index(1)
        auxiliary = FcnHead(layout, options.auxiliary, index=index)
    return HeadModules(
        pyramid=FeaturePyramid(layout.dim, options.rescales, layout.norm),
        head=UperNetHead(
            layout.dim,
            options.channels,
            layout.num_maps,
            layout.num_classes,
            pool_scales=options.pool_scales,
            dropout=options.dropout,
            norm=layout.norm,
        ),
        auxiliary=auxiliary,
    )
