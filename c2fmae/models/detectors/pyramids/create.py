"""Construction of a detector's pyramid from its spec, and its initial weights."""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from c2fmae.core.detector_spec import PyramidSpec
from c2fmae.core.errors import UserError
from c2fmae.core.segmentation_head_options import RESCALES
from c2fmae.models.convolution import initialise_as_torch
from c2fmae.models.detectors.pyramids.fpn import FeaturePyramidNetwork
from c2fmae.models.detectors.pyramids.simple import SimpleFeaturePyramid


def create_pyramid(spec: PyramidSpec, dim: int, patch: int) -> nn.Module:
    """Return a pyramid for the maps of a ViT of this width and patch size.

    It takes a list of a map for each of `spec.depths`, and returns one for each of `spec.strides`, from fine to coarse.
    """
    rescales = [patch / stride for stride in spec.roi_strides]
    if invalid := [
        stride for stride, rescale in zip(spec.roi_strides, rescales, strict=True) if rescale not in RESCALES
    ]:
        supported = ", ".join(f"{patch / rescale:g}" for rescale in RESCALES if patch % rescale == 0)
        raise UserError(
            f"pyramid.strides: with patches of {patch} pixels a stride is one of {supported}, got {invalid[0]}. Change "
            "the strides"
        )
    kind = FeaturePyramidNetwork if spec.name == "fpn" else SimpleFeaturePyramid
    return kind(dim, spec.channels, rescales, spec.norm, has_top_level=spec.top_level)


def initialise_pyramid(pyramid: nn.Module, generator: torch.Generator) -> None:
    """Initialise a pyramid in place: convolutions as torch does, but those of the FPN Xavier uniform, as in mmdet.

    Norms are left unchanged.
    """
    for module in pyramid.modules():
        if isinstance(module, _ConvNd):
            initialise_as_torch(module, generator)
    if isinstance(pyramid, FeaturePyramidNetwork):
        for module in (*pyramid.lateral_convs.modules(), *pyramid.fpn_convs.modules()):
            if isinstance(module, _ConvNd) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
