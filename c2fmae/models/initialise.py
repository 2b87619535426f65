"""Weight initialisation as in MAE and MultiMAE, and of heads as in DINO."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn

_TOKEN_STD = 0.02


def initialise(model: nn.Module, generator: torch.Generator, *, split_qkv: bool = True) -> None:
    """Initialise all weights in place: projections Xavier uniform, tokens and embeddings normal with std 0.02.

    With `split_qkv`, the fan-out of a matrix that holds queries, keys and values is that of one of them (MultiMAE);
    without, that of the whole matrix (MAE). Norms and layer scales are left unchanged.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                kind = name.rpartition(".")[2] if split_qkv else ""
                _xavier(module.weight, {"qkv": 3, "kv": 2}.get(kind, 1), generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, _TOKEN_STD, generator=generator)
            else:
                for parameter_name, parameter in module.named_parameters(recurse=False):
                    if parameter_name in _TOKEN_NAMES:
                        parameter.normal_(0, _TOKEN_STD, generator=generator)


_TOKEN_NAMES = ("cls_token", "reg_token", "mask_token", "granularity")


def _xavier(weight: Tensor, num_matrices: int, generator: torch.Generator) -> None:
    fan_out, fan_in = weight.shape[0] // num_matrices, weight[0].numel()
    bound = math.sqrt(6 / (fan_in + fan_out))
    weight.uniform_(-bound, bound, generator=generator)


def initialise_heads(heads: nn.Module, generator: torch.Generator) -> None:
    """Initialise the linear layers of heads in place: weights normal with std 0.02, biases zero, as in DINO."""
    with torch.no_grad():
        for module in heads.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, _TOKEN_STD, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


def fill_layer_scales(model: nn.Module, value: float) -> None:
    """Set all layer scales to a value, in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LayerScale):
                module.gamma.fill_(value)


def rescale_residual_outputs(blocks: Iterable[nn.Module]) -> None:
    """Divide the weights with which block n adds to the residual stream by √2n, in place, as in BEiT and ConMIM."""
    with torch.no_grad():
        for number, block in enumerate(blocks, start=1):
            plain: Any = block
            for linear in (plain.attn.proj, plain.mlp.fc2):
                linear.weight.div_(math.sqrt(2 * number))
