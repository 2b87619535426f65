"""Segmentation heads by name."""

from c2fmae.models.segmenters.heads.convnext import ConvNeXtHead
from c2fmae.models.segmenters.heads.fcn import FcnHead
from c2fmae.models.segmenters.heads.linear import LinearHead
from c2fmae.models.segmenters.heads.registry import SEGMENTATION_HEADS, HeadChoice, HeadLayout, HeadModules
from c2fmae.models.segmenters.heads.upernet import UperNetHead

__all__ = [
    "SEGMENTATION_HEADS",
    "ConvNeXtHead",
    "FcnHead",
    "HeadChoice",
    "HeadLayout",
    "HeadModules",
    "LinearHead",
    "UperNetHead",
]
