"""Backbones: ViTs from anywhere, behind one interface."""

from c2fmae.models.backbones.backbone import Backbone, restricted, untrained
from c2fmae.models.backbones.load import load_backbone
from c2fmae.models.backbones.load_report import LoadReport
from c2fmae.models.backbones.spec import BackboneSpec, Pool

__all__ = ["Backbone", "BackboneSpec", "LoadReport", "Pool", "load_backbone", "restricted", "untrained"]
