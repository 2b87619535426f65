"""Fair timings on a noisy machine: variants take turns in one process, and ratios are taken inside a round."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from c2fmae.core.environment import collect_environment

K = TypeVar("K")
Clock = Callable[[], float]

WARMUP_ROUNDS = 2
"""Rounds that are not timed."""


def time_in_turn(
    variants: Mapping[K, Callable[[], object]], *, rounds: int, clock: Clock = time.perf_counter
) -> dict[K, list[float]]:
    """Time every variant once a round, after two rounds of warm-up; return seconds by variant."""
    seconds: dict[K, list[float]] = {name: [] for name in variants}
    for round_index in range(rounds + WARMUP_ROUNDS):
        for name, function in variants.items():
            start = clock()
            function()
            if round_index >= WARMUP_ROUNDS:
                seconds[name].append(clock() - start)
    return seconds


def synchronised(function: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return the function as one that ends when the device has done its work."""

    def run_and_wait() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run_and_wait


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return where the median would lie 95 times of 100, by the values' order alone; fewer than 6 do not tell.

    >>> median_interval([3, 1, 4, 1.5, 9, 2.6])
    (1, 9)
    >>> median_interval([3, 1, 4, 1.5, 9])
    """
    count, tail, outside = len(values), 0, -1  # `outside` values on either side lie beyond the interval
    while 2 * (tail := tail + math.comb(count, outside + 1)) <= 0.05 * 2**count:
        outside += 1
    ordered = sorted(values)
    return (ordered[outside], ordered[count - 1 - outside]) if outside >= 0 else None


def describe_machine(device: torch.device) -> str:
    """Return the name of what computes, and the version of torch."""
    info = collect_environment()
    name = info["torch"]["version"]
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {name}"
    threads = info["torch"]["threads"]
    return f"{threads} thread{'s' * (threads > 1)} of {info['cpu']}, torch {name}"
