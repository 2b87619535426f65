"""Exponential moving average of a model's parameters, and of the running statistics of its norms."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from c2fmae.core.running_statistics import running_statistics
from c2fmae.core.sharding import to_local_tensor


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are averaged, by name: the parameters, and the buffers that training changes."""
    return {**dict(model.named_parameters()), **running_statistics(model)}


def init_ema(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the averaged tensors: the average before the first step."""
    return {name: tensor.detach().clone() for name, tensor in averaged_tensors(model).items()}


@torch.no_grad()
def init_teacher(teacher: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Make a teacher the average of the parts of a model that it has too. Return its averaged tensors, by name.

    Now it has the model's weights. It has no gradients, and stays in evaluation mode.
    """
    weights = averaged_tensors(model)
    teacher.requires_grad_(False).eval()
    average = averaged_tensors(teacher)
    shared_storages = {tensor.untyped_storage()._cdata for tensor in weights.values()}
    for name, tensor in average.items():
        if name not in weights or tensor.shape != weights[name].shape:
            raise ValueError(f"the teacher has a parameter {name}, but the model has none of its name and shape")
        if tensor.untyped_storage()._cdata in shared_storages:
            raise ValueError(f"the teacher shares its parameter {name} with the model. Build it with its own")
        tensor.copy_(weights[name])
    return average


@torch.no_grad()
def update_ema(
    ema: Mapping[str, Tensor], tensors: Mapping[str, Tensor], decay: float, condition: Bool[Tensor, ""]
) -> None:
    """Update the average in place if the condition holds: ema = decay · ema + (1 - decay) · tensor.

    Counts of batches are copied. Only the device reads the condition: without it, the weight of `tensors` is 0, which
    leaves the bits of an average of finite tensors as they are.
    """
    names = [name for name, average in ema.items() if average.is_floating_point()]
    weight = condition.double() * (1 - decay)
    weights = {dtype: weight.to(dtype) for dtype in {ema[name].dtype for name in names}}
    torch._foreach_lerp_(
        [to_local_tensor(ema[name]) for name in names],
        [to_local_tensor(tensors[name]) for name in names],
        [weights[ema[name].dtype] for name in names],
    )
    for name in ema.keys() - set(names):
        torch.where(condition, tensors[name], ema[name], out=ema[name])
