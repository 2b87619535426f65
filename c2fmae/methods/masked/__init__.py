"""Masked autoencoding: one training step, shared by every method that hides patches and predicts them."""

from c2fmae.methods.masked.method import MaskedAutoencoding
from c2fmae.methods.masked.objectives import Objective

__all__ = ["MaskedAutoencoding", "Objective"]
