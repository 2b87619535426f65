"""The head that classifies regions and refines their boxes."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.specs import NormKind
from c2fmae.models.convolution import ConvModule


class BoxHead(nn.Module):
    """Convolutions of the pooled map and fully connected layers, then a logit of each class and a box of each."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        head, num_classes = spec.box_head, len(spec.classes)
        self.convs, channels = create_convs(
            spec.pyramid.channels, head.conv_channels, num_convs=head.num_convs, norm=head.norm
        )
        widths = [channels * head.roi_size**2, *[head.fc_dim] * head.num_fcs]
        layers = [(nn.Linear(*sides), nn.ReLU(inplace=True)) for sides in pairwise(widths)]
        self.fcs = nn.Sequential(*(module for layer in layers for module in layer))
        self.class_logits = nn.Linear(widths[-1], num_classes + 1)
        self.box_deltas = nn.Linear(widths[-1], 4 * num_classes)

    def forward(
        self, rois: Float[Tensor, "roi channels rows columns"]
    ) -> tuple[Float[Tensor, "roi logit"], Float[Tensor, "roi class 4"]]:
        """Return the logits of each class and, last, of the background, and the deltas of the box of each class."""
        features = self.fcs(self.convs(rois).flatten(1))
        return self.class_logits(features), self.box_deltas(features).unflatten(1, (-1, 4))


def create_convs(
    in_channels: int, channels: int, *, num_convs: int, norm: NormKind | None
) -> tuple[nn.Sequential, int]:
    """Return 3×3 convolutions, and the number of channels of their output."""
    widths = [in_channels, *[channels] * num_convs]
    return nn.Sequential(*(ConvModule(*pair, kernel_size=3, norm=norm) for pair in pairwise(widths))), widths[-1]
