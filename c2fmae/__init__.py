"""Coarse-to-fine masked autoencoders: pre-train a ViT on images and on what is in them."""

__version__ = "0.2.0"
