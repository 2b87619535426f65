"""Measurement of the time and the memory that calls take on a device.

On a noisy machine, variants are timed in turn in one process, so that slow phases affect all of them alike.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from c2fmae.core.environment import collect_environment
from c2fmae.core.text import format_count

K = TypeVar("K")
Clock = Callable[[], float]

WARMUP_ROUNDS = 2
"""Number of rounds that are not timed."""


def time_in_turn(
    variants: Mapping[K, Callable[[], object]], *, rounds: int, clock: Clock = time.perf_counter
) -> dict[K, list[float]]:
    """Call every variant once per round, after `WARMUP_ROUNDS` rounds of warm-up, and return their times in seconds."""
    seconds: dict[K, list[float]] = {name: [] for name in variants}
    for round_index in range(rounds + WARMUP_ROUNDS):
        for name, function in variants.items():
            start = clock()
            function()
            if round_index >= WARMUP_ROUNDS:
                seconds[name].append(clock() - start)
    return seconds


def make_synchronous(function: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return a function that calls the given one and waits until the device has finished."""

    def run_and_wait() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run_and_wait


def compute_median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the median from order statistics; None for fewer than 6 values.

    >>> compute_median_interval([3, 1, 4, 1.5, 9, 2.6])
    (1, 9)
    >>> compute_median_interval([3, 1, 4, 1.5, 9])
    """
    count, tail, num_outside = len(values), 0, -1  # num_outside: values on each side that the interval leaves out
    while 2 * (tail := tail + math.comb(count, num_outside + 1)) <= 0.05 * 2**count:
        num_outside += 1
    ordered = sorted(values)
    return (ordered[num_outside], ordered[count - 1 - num_outside]) if num_outside >= 0 else None


def measure_saved_bytes(model: nn.Module, call: Callable[[], object]) -> int:
    """Return the bytes that a call saves for its backward pass, without the model's parameters and buffers.

    A storage that several operations or views share counts once, with all its bytes.
    """
    model_addresses = {_storage_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def save_tensor(tensor: Tensor) -> Tensor:
        saved.setdefault(_storage_address(tensor), tensor)  # the reference prevents reuse of the address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save_tensor, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in model_addresses)


def measure_peak_bytes(call: Callable[[], object], device: torch.device | None = None) -> int:
    """Return the peak memory of the tensors that a call allocates; the call runs twice, first to warm up."""
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # suppresses the profiler's warning that there is no GPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
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


def describe_machine(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with the number of threads, and the version of torch."""
    info = collect_environment()
    version = info["torch"]["version"]
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {version}"
    threads = info["torch"]["threads"]
    return f"{format_count(threads, 'thread')} of {info['cpu']}, torch {version}"


def _storage_address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
