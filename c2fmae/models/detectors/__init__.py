"""Detectors: a backbone with a pyramid and the heads of Mask R-CNN."""

from c2fmae.models.detectors.detector import CanvasDetections, Detector

__all__ = ["CanvasDetections", "Detector"]
