"""Exponential moving average of a model's parameters."""

import torch
from torch import Tensor, nn

from c2fmae.core.sharding import to_local_tensor


def init_ema(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters by name: the average before the first step."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Update the average in place: ema = decay · ema + (1 - decay) · parameter."""
    weights = dict(model.named_parameters())
    ema_tensors, weight_tensors = (
        [*map(to_local_tensor, ema.values())],
        [to_local_tensor(weights[name]) for name in ema],
    )
    torch._foreach_lerp_(ema_tensors, weight_tensors, 1 - decay)
