"""Coarse-to-fine masked autoencoders: pre-train a ViT on images and on maps of their content."""

__version__ = "0.2.0"
