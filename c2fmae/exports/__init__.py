"""Exports to timm, transformers, safetensors, ONNX and torch.export, verified by reloading with that library."""

from c2fmae.exports.as_safetensors import read_autoencoder
from c2fmae.exports.export import EXPORT_KINDS, EXPORT_PARTS, ExportResult, export

__all__ = ["EXPORT_KINDS", "EXPORT_PARTS", "ExportResult", "export", "read_autoencoder"]
