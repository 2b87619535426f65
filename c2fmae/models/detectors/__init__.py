"""Detectors: a backbone with a pyramid and the heads of Mask R-CNN, new for fine-tuning or loaded from a run."""

from c2fmae.models.detectors.build import detector_from_backbone, detector_from_spec
from c2fmae.models.detectors.detector import CanvasDetections, Detector
from c2fmae.models.detectors.load import load_detector

__all__ = [
    "CanvasDetections",
    "Detector",
    "detector_from_backbone",
    "detector_from_spec",
    "load_detector",
]
