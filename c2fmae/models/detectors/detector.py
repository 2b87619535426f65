"""A backbone with a pyramid, an RPN, a box head and a mask head: Mask R-CNN."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.models.backbones import Backbone, LoadReport


@dataclass(frozen=True, eq=False)
class CanvasDetections:
    """Detections of one image, in pixels of the canvas that the detector saw."""

    boxes: Float[Tensor, "detection 4"]
    scores: Float[Tensor, " detection"]
    labels: Int64[Tensor, " detection"]
    mask_probabilities: Float[Tensor, "detection cells cells"] | None
    """Probabilities of the cells of each box; None without a mask head."""


class Detector(nn.Module):
    """Mask R-CNN on the feature maps of a backbone."""

    def __init__(self, spec: DetectorSpec, backbone: Backbone, pyramid: nn.Module, relative: nn.Module | None) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.relative = relative
        self.pyramid = pyramid
        self.load_report = LoadReport(source="new detector", loaded=())
        """The source of the weights."""

    @property
    def num_classes(self) -> int:
        """The number of classes, without the background."""
        return len(self.spec.classes)

    def initialise_heads(self, generator: torch.Generator) -> None:
        """Initialise the RPN, the box head and the mask head."""
        raise NotImplementedError

    def detect(
        self,
        images: Float[Tensor, "batch channels height width"],
        sizes: Int64[Tensor, "batch 2"],
        *,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
    ) -> list[CanvasDetections]:
        """Return the detections of standardised images, which are zero beyond their `sizes`."""
        raise NotImplementedError

    def feature_maps(self, images: Float[Tensor, "batch channels height width"]) -> Sequence[Tensor]:
        """Return the maps of the pyramid, from fine to coarse."""
        raise NotImplementedError
