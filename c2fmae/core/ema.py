"""A second set of weights that follows the first: their exponential average over the steps."""

import torch
from torch import Tensor, nn

from c2fmae.core.sharding import to_local_tensor


def init_ema(model: nn.Module) -> dict[str, Tensor]:
    """Return the average before the first step: the weights as they are."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the average towards the weights: `decay` of it stays. 0 is the weights themselves, 1 never moves."""
    weights = dict(model.named_parameters())
    ema_tensors, weight_tensors = (
        [*map(to_local_tensor, ema.values())],
        [to_local_tensor(weights[name]) for name in ema],
    )
    torch._foreach_lerp_(ema_tensors, weight_tensors, 1 - decay)
