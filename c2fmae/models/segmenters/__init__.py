"""Segmenters: a backbone with a pyramid and a head, new for fine-tuning or loaded from a run."""

from c2fmae.models.segmenters.build import segmenter_from_backbone, segmenter_from_spec
from c2fmae.models.segmenters.heads import SEGMENTATION_HEADS, HeadLayout, HeadModules
from c2fmae.models.segmenters.load import load_segmenter
from c2fmae.models.segmenters.segmenter import Segmenter

__all__ = [
    "SEGMENTATION_HEADS",
    "HeadLayout",
    "HeadModules",
    "Segmenter",
    "load_segmenter",
    "segmenter_from_backbone",
    "segmenter_from_spec",
]
