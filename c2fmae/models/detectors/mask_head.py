"""The head that predicts the mask of an object within its box."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.detector_spec import DetectorSpec, MaskHeadSpec
from c2fmae.models.detectors.box_head import create_convs


class MaskHead(nn.Module):
    """Convolutions of the pooled map, a transposed convolution that doubles it, and a mask of each class."""

    def __init__(self, spec: DetectorSpec, head: MaskHeadSpec) -> None:
        super().__init__()
        self.convs, channels = create_convs(
            spec.pyramid.channels, head.channels, num_convs=head.num_convs, norm=head.norm
        )
        self.upsample = nn.ConvTranspose2d(channels, head.channels, kernel_size=2, stride=2)
        self.mask_logits = nn.Conv2d(head.channels, len(spec.classes), kernel_size=1)

    def forward(self, rois: Float[Tensor, "roi channels rows columns"]) -> Float[Tensor, "roi class 2*rows 2*columns"]:
        """Return the logits of the mask of each class."""
        return self.mask_logits(F.relu(self.upsample(self.convs(rois)), inplace=True))  # type: ignore[no-any-return]
