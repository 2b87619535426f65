"""Initial weights of the RPN and the heads, as in detectron2 and MMDetection."""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from c2fmae.models.detectors.box_head import BoxHead
from c2fmae.models.detectors.mask_head import MaskHead
from c2fmae.models.detectors.rpn import Rpn

_RPN_STD = _CLASS_STD = 0.01
_BOX_STD = _MASK_STD = 0.001


def initialise_heads(rpn: Rpn, box_head: BoxHead, mask_head: MaskHead | None, generator: torch.Generator) -> None:
    """Initialise the RPN and the heads in place. Biases are 0 at the start; norms are left unchanged.

    The RPN is normal with std 0.01. In the heads, convolutions are Kaiming normal (fan-out), linear maps Xavier
    uniform, and the last layers normal: classes with std 0.01, boxes and masks with 0.001.
    """
    stds: dict[nn.Module, float] = dict.fromkeys(rpn.modules(), _RPN_STD)
    stds |= {box_head.class_logits: _CLASS_STD, box_head.box_deltas: _BOX_STD}
    modules: list[nn.Module] = [rpn, box_head]
    if mask_head is not None:
        stds[mask_head.mask_logits] = _MASK_STD
        modules.append(mask_head)
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, _ConvNd | nn.Linear):
                _initialise_layer(layer, stds.get(layer), generator)


def _initialise_layer(layer: _ConvNd | nn.Linear, std: float | None, generator: torch.Generator) -> None:
    if std is not None:
        nn.init.normal_(layer.weight, std=std, generator=generator)
    elif isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
    else:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
