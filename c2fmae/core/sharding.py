"""Sharding of weights, gradients and moments over ranks (FSDP2).

Only this file and `core/distributed.py` depend on how tensors are distributed over ranks. All functions here return
plain tensors, and leave unsharded models, unchanged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from c2fmae.core.layers import list_blocks


def shard_model(model: nn.Module, device: torch.device, world_size: int) -> None:
    """Shard a model over all ranks, in place and onto the device; every rank must pass the same weights.

    The `sharding_units` of a `LayeredModel` are gathered one at a time, when they run; a model that declares none is
    gathered as a whole.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    for block in list_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def to_local_tensor(tensor: Tensor) -> Tensor:
    """Return a view of this rank's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Shard a tensor, which every rank holds in full, as `reference` is sharded, without communication."""
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(reference.device), reference.device_mesh, reference.placements, src_data_rank=None
    )


def iter_unsharded(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield unsharded tensors by name, one at a time, so that a device never holds two; every rank must exhaust it."""
    for name, tensor in tensors.items():
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return unsharded tensors on the main rank and nothing on the others; every rank must call it.

    If any tensor is sharded, all of them are returned on the CPU.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return dict(tensors)
    is_main = dist.get_rank() == 0
    copies = ((name, tensor.cpu() if is_main else None) for name, tensor in iter_unsharded(tensors))
    return {name: copy for name, copy in copies if copy is not None}


def unshard_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return unsharded tensors on all ranks; every rank must call it."""
    return dict(iter_unsharded(tensors))


@torch.no_grad()
def compute_total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector, the same on all ranks."""
    tensors = [*tensors]
    return _reduce_norms(get_total_norm([to_local_tensor(tensor) for tensor in tensors]), tensors)


@torch.no_grad()
def compute_norms(tensors: Iterable[Tensor]) -> Float[Tensor, " tensor"]:
    """Return the norm of each tensor, the same on all ranks."""
    tensors = [*tensors]
    return _reduce_norms(torch.stack(torch._foreach_norm([to_local_tensor(tensor) for tensor in tensors])), tensors)


def _reduce_norms(norms: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return the norms of tensors from those of this rank's shards."""
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        squares = norms.double().square()
        dist.all_reduce(squares)
        norms = squares.sqrt().to(norms.dtype)
    return norms


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather a sharded model's weights, so that a rank can run it alone; all ranks enter and exit together."""
    fsdp_modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in fsdp_modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in fsdp_modules:
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()
