"""What a call holds in memory."""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_tensor_bytes(model: nn.Module, call: Callable[[], object]) -> int:
    """Return how many bytes a call keeps for its backward pass, besides the model's own parameters and tables.

    What several operations keep, or views of it, is counted once, and wholly where a part of it is kept.
    """
    model_addresses = {_storage_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def save_tensor(tensor: Tensor) -> Tensor:
        saved.setdefault(_storage_address(tensor), tensor)  # held, so that nothing else comes to lie there
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save_tensor, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in model_addresses)


def peak_bytes(call: Callable[[], object], device: torch.device | None = None) -> int:
    """Return the most bytes that a call holds at once in tensors of its own; it is called twice, first to warm up."""
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler tells stderr that there is no GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    allocated = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    del result
    return peak


def _storage_address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
