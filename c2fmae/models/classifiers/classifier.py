"""A backbone with a linear classification head."""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.specs import ClassifierSpec
from c2fmae.models.backbones import Backbone, LoadReport
from c2fmae.models.backbones.backbone import BackboneInput


class Classifier(nn.Module):
    """A linear head on the pooled features of a backbone."""

    def __init__(self, spec: ClassifierSpec, backbone: Backbone, head: nn.Linear) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.head = head
        self.load_report = LoadReport(source="new classifier", loaded=())
        """The source of the weights."""

    @property
    def num_labels(self) -> int:
        """The number of logits."""
        return self.head.out_features

    def forward(self, maps: BackboneInput) -> Float[Tensor, "batch label"]:
        """Return the logits of images, or of maps of any of its granularities."""
        return cast(Tensor, self.head(self.backbone.pool(self.backbone.tokens(maps))))

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        """Return the layers of the backbone."""
        return self.backbone.trunk_layers()

    def sharding_units(self) -> list[nn.Module]:
        """Return the blocks of the backbone."""
        return self.backbone.sharding_units()
