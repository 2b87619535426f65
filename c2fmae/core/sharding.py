"""Weights, gradients and moments shared out over the processes (FSDP2): with `world`, all that knows who holds what.

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


def shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Share a model's weights out, in place and onto the device: those of a block are together only while it works.

    Blocks are what stands in an `nn.Sequential`. All processes give the same weights.
    """
    mesh = init_device_mesh(device.type, (size,))
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def own_part(tensor: Tensor) -> Tensor:
    """Return what of a tensor lies in this process: a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, ours: Tensor) -> Tensor:
    """Return a tensor, whole in all processes, shared out as ours is; nothing is sent."""
    if not isinstance(ours, DTensor):
        return tensor
    return distribute_tensor(tensor.to(ours.device), ours.device_mesh, ours.placements, src_data_rank=None)


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors in the first process, in main memory where they are sharded, and nothing in the others."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():  # one after another, so that a device holds one at a time
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            found[name] = whole.cpu()
    return found


@torch.no_grad()
def norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector, the same in all processes."""
    tensors = [*tensors]
    norm = get_total_norm([own_part(tensor) for tensor in tensors])
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        squares = norm.double().square()
        dist.all_reduce(squares)
        norm = squares.sqrt().to(norm.dtype)
    return norm


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Let each process run a sharded model as often as it likes, alone; all enter and leave together."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
