"""MultiMAE (Bachmann et al., 2022), over this project's granularities: decoders that do not read each other."""

from c2fmae.masking.config import MaskingConfig
from c2fmae.methods.config import MethodConfig
from c2fmae.methods.registry import METHODS
from c2fmae.models.config import DecoderConfig


@METHODS.register("multimae")
def multimae() -> MethodConfig:
    """MultiMAE: a decoder of its own for each prediction, which reads only what the encoder saw."""
    return MethodConfig(
        name="multimae",
        decoder=DecoderConfig(
            name="parallel", context="visible", query_residual=False, entry="own", stage_per="target"
        ),
        targets={"rgb": ("pixels", "normalized_pixels")},
        masking=MaskingConfig(policy="random"),
    )
