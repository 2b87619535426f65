"""Masked autoencoding: one training step, shared by every method that hides patches and predicts them."""

from c2fmae.methods.masked.method import MaskedAutoencoding, Objective

__all__ = ["MaskedAutoencoding", "Objective"]
