"""Exports to other libraries, verified by reloading the files and comparing the outputs."""

from c2fmae.exports.as_safetensors import read_autoencoder
from c2fmae.exports.export import EXPORT_KINDS, EXPORT_PARTS, ExportResult, export

__all__ = ["EXPORT_KINDS", "EXPORT_PARTS", "ExportResult", "export", "read_autoencoder"]
