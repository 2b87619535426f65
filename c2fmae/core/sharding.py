"""Weights, gradients and moments shared out over the processes (FSDP2).

With `distributed`, all that knows who holds what.

Plain tensors and models pass through every function here as they are.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm


def shard_model(model: nn.Module, device: torch.device, world_size: int) -> None:
    """Share a model's weights out, in place and onto the device: those of a block are together only while it works.

    Blocks are what stands in an `nn.Sequential`. All processes give the same weights.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def to_local_tensor(tensor: Tensor) -> Tensor:
    """Return what of a tensor lies in this process: a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return a tensor, whole in all processes, shared out as ours is; nothing is sent."""
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(reference.device), reference.device_mesh, reference.placements, src_data_rank=None
    )


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors in the first process, in main memory where they are sharded, and nothing in the others."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return dict(tensors)
    gathered = {}
    for name, tensor in tensors.items():  # one after another, so that a device holds one at a time
        full_tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            gathered[name] = full_tensor.cpu()
    return gathered


@torch.no_grad()
def compute_total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector, the same in all processes."""
    tensors = [*tensors]
    norm = get_total_norm([to_local_tensor(tensor) for tensor in tensors])
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        squares = norm.double().square()
        dist.all_reduce(squares)
        norm = squares.sqrt().to(norm.dtype)
    return norm


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Let each process run a sharded model as often as it likes, alone; all enter and leave together."""
    fsdp_modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in fsdp_modules:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in fsdp_modules:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
