"""Pre-training methods: a masking policy, a model and its losses, joined into one training step.

>>> from c2fmae.methods import METHODS, build_method
>>> method = build_method(METHODS.get("mae")().override(["encoder.name=vit_tiny_patch16_224", "image_size=[64, 64]"]))
>>> sorted(method.objectives)
['rgb']
"""

from c2fmae.config.presets import METHODS
from c2fmae.core.loop import StepLoss
from c2fmae.methods.build import build_method
from c2fmae.methods.masked import MaskedAutoencoding, Objective
from c2fmae.methods.protocol import Method, MethodTask

__all__ = ["METHODS", "MaskedAutoencoding", "Method", "MethodTask", "Objective", "StepLoss", "build_method"]
