"""What joins a masking policy, a model and its losses into one training step.

>>> from c2fmae.methods import METHODS, build_method
>>> method = build_method(METHODS.get("mae")().override(["encoder.name=vit_tiny_patch16_224", "image_size=[64, 64]"]))
>>> sorted(method.objectives)
['rgb']
"""

from c2fmae.methods import c2fmae, mae, multimae  # noqa: F401 - each registers itself
from c2fmae.methods.build import build_method
from c2fmae.methods.config import MethodConfig
from c2fmae.methods.masked import MaskedAutoencoding, Objective, StepLoss
from c2fmae.methods.registry import METHODS

__all__ = ["METHODS", "MaskedAutoencoding", "MethodConfig", "Objective", "StepLoss", "build_method"]
