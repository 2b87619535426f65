"""MAE (He et al., 2022): photos alone, a deep joint decoder, pixels relative to their patch."""

from c2fmae.core.specs import EncoderConfig
from c2fmae.masking.config import MaskingConfig
from c2fmae.methods.config import MethodConfig
from c2fmae.methods.registry import METHODS
from c2fmae.models.config import DecoderConfig


@METHODS.register("mae")
def mae() -> MethodConfig:
    """MAE: photos alone, three quarters of each hidden at random."""
    return MethodConfig(
        name="mae",
        granularities=("rgb",),
        encoder=EncoderConfig(has_norm=True),
        decoder=DecoderConfig(name="joint", dim=512, num_heads=16, depth=8, has_norm=True),
        targets={"rgb": ("normalized_pixels",)},
        masking=MaskingConfig(policy="random"),
        initialisation="fused",
    )
