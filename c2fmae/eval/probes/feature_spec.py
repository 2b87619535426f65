"""Which features of an image a probe needs."""

from dataclasses import dataclass
from typing import NamedTuple

from c2fmae.core.specs import Pooling
from c2fmae.eval.evaluation import Precision

FEATURES_DIR = "features"
"""Where features are stored below a model's output directory."""


class FeatureColumn(NamedTuple):
    """The features of one block, pooled in one way."""

    depth: int
    pool: Pooling

    def __str__(self) -> str:
        return f"layer {self.depth}, {self.pool}"


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What is computed of every scene."""

    columns: tuple[FeatureColumn, ...] = ()
    patch_depths: tuple[int, ...] = ()
    """Blocks after which the features of all patches are stored."""
    has_maps: bool = False
    """Whether semantic maps are stored too."""
    precision: Precision = "fp32"

    def __str__(self) -> str:
        return ", ".join([*map(str, self.columns), *(f"patches of layer {depth}" for depth in self.patch_depths)])
