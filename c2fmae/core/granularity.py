"""Granularities: the kinds of maps that describe an image, from coarse to fine.

This module needs neither torch nor pydantic. Code that reads, crops, embeds, predicts or draws a map looks up the
`GranularitySpec` by name and branches on its `kind`, so a new granularity needs only a registered spec.
"""

from dataclasses import dataclass
from typing import Literal

from c2fmae.core.registry import Registry

IGNORE = 255
"""Id of unlabelled pixels in memory. Readers convert a file's own value to it."""

InstanceOverflow = Literal["ignore", "background"]
"""Replacement of objects whose id exceeds the model's largest: unlabelled pixels, or background."""


@dataclass(frozen=True, kw_only=True)
class GranularitySpec:
    """Description of one granularity."""

    kind: Literal["image", "ids", "continuous"]
    channels: int
    """Channels of an image; number of classes of an id map, unless the data names its own classes."""
    suffix: str
    """File name after the key: `jpg` for `key.jpg`, `semantic.png` for `key.semantic.png`."""
    resize: Literal["antialias", "nearest"] = "nearest"
    """Interpolation used to resize the map. Ids are only ever resized with `nearest`."""
    colouring: Literal["image", "classes", "instances", "heat"] = "classes"
    """Colour scheme of figures."""


GRANULARITIES: Registry[GranularitySpec] = Registry("granularity")

COARSE_TO_FINE = ("semantic", "instance", "rgb")
"""The paper's granularities, in the order in which they are predicted."""

GRANULARITIES.register("semantic", "Scene level: a class id for every pixel.")(
    GranularitySpec(kind="ids", channels=133, suffix="semantic.png")
)
GRANULARITIES.register("instance", "Object level: 0 for background, an id for each object.")(
    GranularitySpec(kind="ids", channels=32, suffix="instance.png", colouring="instances")
)
GRANULARITIES.register("rgb", "Pixel level: the image.")(
    GranularitySpec(kind="image", channels=3, suffix="jpg", resize="antialias", colouring="image")
)
GRANULARITIES.register("depth", "Distance of each pixel: a PNG of one channel with 8 or 16 bits.")(
    GranularitySpec(kind="continuous", channels=1, suffix="depth.png", colouring="heat")
)
