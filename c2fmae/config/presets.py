"""Methods by name: the published ones as configs."""

from c2fmae.config import branch_presets as branch_presets  # registers them
from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.masking import MaskingConfig
from c2fmae.config.method import METHODS as METHODS
from c2fmae.config.target import TargetConfig
from c2fmae.core.decoder_options import JointOptions, ParallelOptions
from c2fmae.core.specs import EncoderConfig

MAE_DECODER = JointOptions(dim=512, num_heads=16, depth=8, has_norm=True)
MULTIMAE_DECODER = ParallelOptions(context="visible", query_residual=False, entry="own", stage_per="target")


@METHODS.register("c2fmae")
def c2fmae() -> MaskedConfig:
    """C2FMAE: semantic map, instance map and image, each stage reading the one before it."""
    return MaskedConfig(name="c2fmae")


@METHODS.register("mae")
def mae() -> MaskedConfig:
    """MAE: images alone, three quarters of each hidden at random, a deep joint decoder (He et al., 2022)."""
    return MaskedConfig(
        name="mae",
        granularities=("rgb",),
        encoder=EncoderConfig(has_norm=True),
        decoder=DecoderConfig(name="joint", options=MAE_DECODER),
        targets={"rgb": (TargetConfig(name="normalized_pixels"),)},
        masking=MaskingConfig(name="random"),
        initialisation="fused",
    )


@METHODS.register("multimae")
def multimae() -> MaskedConfig:
    """MultiMAE: a decoder for each prediction, which reads visible tokens alone (Bachmann et al., 2022)."""
    return MaskedConfig(
        name="multimae",
        decoder=DecoderConfig(name="parallel", options=MULTIMAE_DECODER),
        targets={"rgb": (TargetConfig(name="pixels"), TargetConfig(name="normalized_pixels"))},
        masking=MaskingConfig(name="random"),
    )
