"""Backbones: pre-trained ViTs from all supported sources, with one interface."""

from c2fmae.models.backbones.backbone import Backbone, create_untrained_backbone, restrict_granularities
from c2fmae.models.backbones.load import load_backbone
from c2fmae.models.backbones.load_report import LoadReport

__all__ = [
    "Backbone",
    "LoadReport",
    "create_untrained_backbone",
    "load_backbone",
    "restrict_granularities",
]
