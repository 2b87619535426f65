"""The convolution that pyramids and heads are made of."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from c2fmae.core.specs import NormKind
from c2fmae.models.norms import create_norm


class ConvModule(nn.Module):
    """A convolution that keeps the size, a norm and ReLU: mmseg's `ConvModule`. It has a bias only without a norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: NormKind | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm is None)
        self.norm = create_norm(norm, out_channels) if norm is not None else nn.Identity()

    def forward(self, x: Float[Tensor, "batch _ rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        """Return maps of the same size."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


def resize(
    x: Float[Tensor, "batch channels _ _"], like: Float[Tensor, "batch _ rows columns"]
) -> Float[Tensor, "batch channels rows columns"]:
    """Return maps resized to the size of other maps, bilinear; corners are not aligned, as everywhere here."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def initialise_as_torch(conv: _ConvNd, generator: torch.Generator) -> None:
    """Initialise a convolution in place like torch's constructors, from a generator."""
    bound = 1 / math.sqrt(conv.weight[0].numel())
    for parameter in conv.parameters():
        parameter.uniform_(-bound, bound, generator=generator)
