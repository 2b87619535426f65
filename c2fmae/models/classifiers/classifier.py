"""A backbone with a head: of photos, and of maps where it has learned from them, the logits of its labels."""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.specs import ClassifierSpec
from c2fmae.models.backbones import Backbone, LoadReport
from c2fmae.models.backbones.backbone import BackboneInput


class Classifier(nn.Module):
    """A linear head on the one vector that a backbone makes of an image. It never hides anything."""

    def __init__(self, spec: ClassifierSpec, backbone: Backbone, head: nn.Linear) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.head = head
        self.load_report = LoadReport(source="made anew", loaded=())
        """Where its weights are from."""

    @property
    def num_labels(self) -> int:
        """How many logits it gives."""
        return self.head.out_features

    def forward(self, maps: BackboneInput) -> Float[Tensor, "batch label"]:
        """Return a logit for each label, of any of its granularities' maps."""
        return cast(Tensor, self.head(self.backbone.pool(self.backbone.tokens(maps))))

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        """Return the layers of the backbone."""
        return self.backbone.trunk_layers()

    def sharding_units(self) -> list[nn.Module]:
        """Return the blocks of the backbone."""
        return self.backbone.sharding_units()
