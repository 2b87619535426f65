"""How weights start, as in MAE and MultiMAE."""

import math

import torch
from torch import Tensor, nn

_TOKEN_STD = 0.02


def initialise(model: nn.Module, generator: torch.Generator, *, split_qkv: bool = True) -> None:
    """Draw all weights anew: Xavier uniform for every projection, normal with deviation 0.02 for every token.

    `split_qkv` counts queries, keys and values that share a matrix as the three that they are, as MultiMAE does and
    MAE does not. Norms and layer scales stay as they were made.
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
