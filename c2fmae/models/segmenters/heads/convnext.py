"""MultiMAE's segmentation head: each patch becomes a grid of cells, which ConvNeXt blocks process."""

from jaxtyping import Float
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from c2fmae.core.segmentation_head_options import ConvNeXtOptions
from c2fmae.models.feature_pyramid import FeatureMaps
from c2fmae.models.segmenters.heads.registry import SEGMENTATION_HEADS, HeadLayout, HeadModules


class ConvNeXtHead(nn.Module):
    """A projection of each patch of the last map, ConvNeXt blocks and a classifier. Its norms are layer norms."""

    def __init__(self, layout: HeadLayout, options: ConvNeXtOptions) -> None:
        super().__init__()
        self.side = round(options.cells**0.5)
        channels = options.dim // options.cells
        self.proj = nn.Linear(layout.dim, options.dim)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(channels, ls_init_value=None) for _ in range(options.depth)))
        self.classifier = nn.Conv2d(channels, layout.num_classes, 1)

    def forward(self, maps: FeatureMaps) -> Float[Tensor, "batch class rows columns"]:
        """Return `side`² logits of each class for each patch."""
        x = self.proj(maps[-1].permute(0, 2, 3, 1)).unflatten(3, (self.side, self.side, -1))
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [batch, channels, rows·side, columns·side]
        return self.classifier(self.blocks(x))  # type: ignore[no-any-return]


@SEGMENTATION_HEADS.register(
    "convnext", "ConvNeXt blocks on 16 cells of each patch of the last map (MultiMAE).", options=ConvNeXtOptions
)
def create_convnext(layout: HeadLayout, options: ConvNeXtOptions) -> HeadModules:
    """Create the head."""
    return HeadModules(head=ConvNeXtHead(layout, options))
