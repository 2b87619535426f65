"""A backbone with a segmentation head."""

from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.specs import SegmenterSpec
from c2fmae.models.backbones import Backbone, LoadReport
from c2fmae.models.feature_pyramid import FeatureMaps
from c2fmae.models.relative_positions import RelativePositionModule, add_relative_positions, list_called_blocks
from c2fmae.models.segmenters.heads.registry import HeadModules


class Segmenter(nn.Module):
    """A head on the feature maps of a backbone, which returns logits for each cell of images.

    Images of any size are padded on the right and bottom to multiples of the patch size, with the mean colour; logits
    are those of the padded images.
    """

    def __init__(
        self, spec: SegmenterSpec, backbone: Backbone, modules: HeadModules, relative: RelativePositionModule | None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.relative = relative
        self.pyramid = modules.pyramid
        self.head = modules.head
        self.auxiliary = modules.auxiliary
        self.load_report = LoadReport(source="new segmenter", loaded=())
        """The source of the weights."""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.spec.classes)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> dict[str, Float[Tensor, "batch class _ _"]]:
        """Return logits of standardised images at the resolution of each head.

        `main` are those of the head; in training mode `auxiliary` are those of the auxiliary head, if there is one.
        """
        maps = self.feature_maps(images)
        outputs = {"main": self.head(maps)}
        if self.training and self.auxiliary is not None:
            outputs["auxiliary"] = self.auxiliary(maps)
        return outputs

    def logits(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch class rows columns"]:
        """Return the logits of the head for standardised images, at its resolution."""
        return self.head(self.feature_maps(images))  # type: ignore[no-any-return]

    def feature_maps(self, images: Float[Tensor, "batch channels height width"]) -> FeatureMaps:
        """Return the maps that the heads take."""
        maps = self.backbone.feature_maps(images, self.spec.depths, normed=self.spec.normed, relative=self.relative)
        return self.pyramid(maps) if self.pyramid is not None else maps

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        """Return the layers of the backbone, with the relative positions of each block."""
        return add_relative_positions(self.backbone.trunk_layers(), self.relative)

    def sharding_units(self) -> list[nn.Module]:
        """Return the blocks of the backbone, if they are called as modules."""
        return list_called_blocks(self.backbone.sharding_units(), self.relative, None)
