"""Depth as a further granularity: how far away what a pixel shows is, in whatever unit.

All that is said of it is here. What reads, cuts, embeds, predicts and compares it goes by its kind.
"""

from c2fmae.core.scene import GRANULARITIES, GranularitySpec

DEPTH = GRANULARITIES.register("depth", "How far away each pixel is: a PNG of one channel at 8 or 16 bits.")(
    GranularitySpec(name="depth", kind="continuous", channels=1, suffix="depth.png", colouring="heat")
)
