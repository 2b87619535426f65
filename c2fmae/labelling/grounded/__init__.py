"""The labeller `grounded`: boxes of an open-vocabulary detector, and the mask of each box by a segmenter."""

from c2fmae.labelling.grounded.labeller import GroundedConfig, GroundedLabeller

__all__ = ["GroundedConfig", "GroundedLabeller"]
