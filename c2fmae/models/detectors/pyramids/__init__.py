"""Pyramids: the maps of different strides that the heads of a detector take."""

from c2fmae.models.detectors.pyramids.create import create_pyramid, initialise_pyramid

__all__ = ["create_pyramid", "initialise_pyramid"]
