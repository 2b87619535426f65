"""Decoders by name. `wirings` shows what sets them apart."""

from c2fmae.models.decoders.registry import DECODERS, DecoderPlan
from c2fmae.models.decoders.wirings import Cascaded, Joint, Parallel, SelfAttention, Stage

__all__ = ["DECODERS", "Cascaded", "DecoderPlan", "Joint", "Parallel", "SelfAttention", "Stage"]
