"""The precision of residual streams: of the tokens to which each block adds its outputs."""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn


class ResidualStream(nn.Module):
    """A module that begins a residual stream. Blocks preserve the dtype with which it begins.

    By default that is the dtype of the weights, also under autocast. With `is_narrow` it is the dtype of autocast,
    where autocast is enabled: blocks then read and write half of the bytes, and additions are rounded.
    """

    is_narrow: bool = False

    def begin_stream(self, tokens: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return tokens in the dtype of the stream."""
        device = tokens.device.type
        is_autocast = self.is_narrow and torch.is_autocast_enabled(device)
        return tokens.to(torch.get_autocast_dtype(device)) if is_autocast else tokens


def narrow_streams(model: nn.Module) -> None:
    """Let all residual streams of a model have the dtype of autocast."""
    for module in model.modules():
        if isinstance(module, ResidualStream):
            module.is_narrow = True
