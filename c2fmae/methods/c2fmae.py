"""C2FMAE: three granularities, predicted from coarse to fine, masked by a curriculum."""

from c2fmae.methods.config import MethodConfig
from c2fmae.methods.registry import METHODS


@METHODS.register("c2fmae")
def c2fmae() -> MethodConfig:
    """C2FMAE: semantic map, instance map and photo, each stage reading the one before it."""
    return MethodConfig(name="c2fmae")
