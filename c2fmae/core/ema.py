"""Exponential moving average of a model's parameters, and of the running statistics of its norms."""

import torch
from torch import Tensor, nn

from c2fmae.core.running_statistics import running_statistics
from c2fmae.core.sharding import to_local_tensor


def init_ema(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters and running statistics by name: the average before the first step."""
    return {name: tensor.detach().clone() for name, tensor in _averaged_tensors(model).items()}


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Update the average in place: ema = decay · ema + (1 - decay) · tensor. Counts of batches are copied."""
    current = _averaged_tensors(model)
    names = [name for name, tensor in ema.items() if tensor.is_floating_point()]
    torch._foreach_lerp_(
        [to_local_tensor(ema[name]) for name in names],
        [to_local_tensor(current[name]) for name in names],
        1 - decay,
    )
    for name in ema.keys() - set(names):
        ema[name].copy_(current[name])


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, and the buffers that training changes."""
    return {**dict(model.named_parameters()), **running_statistics(model)}
