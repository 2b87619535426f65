"""The buffers that training changes: running statistics of batch norms."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of batch norms, and their counts of batches, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def restore_statistics_unless(
    condition: Bool[Tensor, ""], statistics: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    """Set running statistics to those of a copy, unless the condition holds, which only the device reads."""
    for name, buffer in statistics.items():
        torch.where(condition, buffer, saved[name], out=buffer)
