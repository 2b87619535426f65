"""The labeller `universal`: both maps from the masks and classes of the queries of Mask2Former, OneFormer or EoMT."""

from c2fmae.labelling.universal.labeller import UniversalConfig, UniversalLabeller

__all__ = ["UniversalConfig", "UniversalLabeller"]
