"""The name of the timm model that tensors without a name fit."""

from collections.abc import Mapping

import torch
from torch import Tensor

_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "layer1.0.conv1.weight": ("resnet[0-9]*", "wide_resnet*", "resnext*", "seresnet[0-9]*"),
    "stages.0.blocks.0.conv_dw.weight": ("convnext*",),
    "layers.0.blocks.0.attn.relative_position_bias_table": ("swin_*",),
    "layers.0.blocks.0.attn.logit_scale": ("swinv2_*",),
    "dist_token": ("deit_*_distilled_*", "deit3_*"),
    "blocks.0.attn.relative_position_bias_table": ("beit*",),
    "blocks.0.ls1.gamma": ("deit3_*", "vit_*"),
    "blocks.0.0.conv_dw.weight": ("efficientnet_*", "mobilenetv*"),
    "features.denseblock1.denselayer1.conv1.weight": ("densenet*",),
}
"""Patterns of timm's names, by a tensor that only the models of a family have."""


def guess_timm_name(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the shortest name of a timm classifier that has exactly these tensors; None if no common one has them."""
    import timm

    patterns = [pattern for name, patterns in _FAMILIES.items() if name in tensors for pattern in patterns]
    names = {name for pattern in patterns for name in timm.list_models(pattern)}
    shapes = _list_shapes(tensors)
    for name in sorted(names, key=lambda name: (len(name), name)):
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:
            continue
        if _list_shapes(model.state_dict()) == shapes:
            return name
    return None


def _list_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
