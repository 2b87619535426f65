"""A second set of weights that follows the first: their exponential average over the steps."""

import torch
from torch import Tensor, nn

from c2fmae.core.sharding import own_part


def average_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the average before the first step: the weights as they are."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def follow(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the average towards the weights: `decay` of it stays. 0 is the weights themselves, 1 never moves."""
    weights = dict(model.named_parameters())
    slow, fast = [*map(own_part, average.values())], [own_part(weights[name]) for name in average]
    torch._foreach_lerp_(slow, fast, 1 - decay)
