"""Decoders by name; `wirings.py` shows how they differ."""

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
