"""Decoders by name. `wirings.py` contains their classes, which differ in the connections between blocks."""

from c2fmae.models.decoders.registry import DECODERS, DecoderLayout
from c2fmae.models.decoders.wirings import CascadedDecoder, JointDecoder, ParallelDecoder, SelfAttentionDecoder, Stage

__all__ = [
    "DECODERS",
    "CascadedDecoder",
    "DecoderLayout",
    "JointDecoder",
    "ParallelDecoder",
    "SelfAttentionDecoder",
    "Stage",
]
