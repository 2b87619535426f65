"""Initial weights of pyramids and heads, as in mmseg and MultiMAE."""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from c2fmae.models.convolution import ConvModule, initialise_as_torch

_CLASSIFIER_STD = 0.01
_LINEAR_STD = 0.02


def initialise_head(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise a pyramid or a head in place.

    Convolutions before a norm and ReLU are Kaiming normal (fan-out), classifiers normal with std 0.01, other linear
    maps normal with std 0.02, all without bias at the start. Other convolutions are as torch initialises them. Norms
    are left unchanged.
    """
    with torch.no_grad():
        kaiming = {id(inner.conv) for inner in module.modules() if isinstance(inner, ConvModule)}
        for name, inner in module.named_modules():
            if isinstance(inner, _ConvNd) and id(inner) in kaiming:
                nn.init.kaiming_normal_(inner.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif name.rpartition(".")[2] == "classifier" and isinstance(inner, _ConvNd | nn.Linear):
                _draw_normal(inner, _CLASSIFIER_STD, generator)
            elif isinstance(inner, nn.Linear):
                _draw_normal(inner, _LINEAR_STD, generator)
            elif isinstance(inner, _ConvNd):
                initialise_as_torch(inner, generator)


def _draw_normal(module: _ConvNd | nn.Linear, std: float, generator: torch.Generator) -> None:
    module.weight.normal_(0, std, generator=generator)
    if module.bias is not None:
        module.bias.zero_()
