"""Weights out: to timm, transformers, safetensors, ONNX and torch.export, each checked by whoever reads it."""

from c2fmae.exports.as_safetensors import read_autoencoder
from c2fmae.exports.export import KINDS, PARTS, Exported, export

__all__ = ["KINDS", "PARTS", "Exported", "export", "read_autoencoder"]
