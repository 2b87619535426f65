"""Methods by name: the published ones as configs."""

from typing import Any

from c2fmae.config import branch_presets as branch_presets  # registers them
from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.masking import MaskingConfig, MaskingOptions
from c2fmae.config.method import METHODS as METHODS
from c2fmae.config.target import TargetConfig
from c2fmae.core.decoder_options import DirectOptions, JointOptions, ParallelOptions
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


@METHODS.register("simmim")
def simmim() -> MaskedConfig:
    """SimMIM: the encoder reads mask tokens, and a linear layer predicts the pixels of squares (Xie et al., 2022)."""
    return _with_mask_tokens(
        "simmim", MaskingConfig(name="units"), TargetConfig(name="absolute"), num_visible=76, loss_average="cells"
    )


@METHODS.register("maskfeat")
def maskfeat() -> MaskedConfig:
    """MaskFeat: the encoder reads mask tokens, and predicts histograms of gradients in blocks (Wei et al., 2022)."""
    return _with_mask_tokens("maskfeat", hide_blocks(15), TargetConfig(name="hog"), num_visible=118)


def _with_mask_tokens(name: str, masking: MaskingConfig, target: TargetConfig, **settings: Any) -> MaskedConfig:
    """Return a method without a decoder, whose encoder reads images with mask tokens for hidden patches."""
    return MaskedConfig(
        name=name,
        granularities=("rgb",),
        encoder=EncoderConfig(has_norm=True),
        decoder=DecoderConfig(name="direct", options=DirectOptions()),
        targets={"rgb": (target,)},
        masking=masking,
        initialisation="fused",
        **settings,
    )


def hide_blocks(min_area: int) -> MaskingConfig:
    """Return masks of blocks with at least this many patches."""
    return MaskingConfig(name="blocks", options=MaskingOptions(min_area=min_area))
