"""Weight initialisation as in MAE and MultiMAE."""

import math

import torch
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
