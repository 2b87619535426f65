"""Fair timings on a noisy machine: variants take turns in one process, and ratios are taken inside a round."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def alternate(variants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Time every variant once a round, after two rounds of warm-up; return seconds by variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 2):
        for name, function in variants.items():
            start = time.perf_counter()
            function()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: Mapping[str, list[float]], *, peer: str, samples: int) -> None:
    """Print medians, minima and how many times the peer's speed each variant has."""
    print(f"\n{title}\n{'':34s}{'median ms':>10s}{'min ms':>9s}{'samples/s':>11s}{'x peer':>9s}{'of minima':>11s}")
    for name, times in seconds.items():
        paired = statistics.median(theirs / ours for ours, theirs in zip(times, seconds[peer], strict=True))
        median, minimum = statistics.median(times), min(times)
        print(
            f"{name:34s}{median * 1e3:10.2f}{minimum * 1e3:9.2f}{samples / median:11,.0f}"
            f"{paired:9.2f}{min(seconds[peer]) / minimum:11.2f}"
        )


def report_cost(title: str, seconds: Mapping[str, list[float]], *, peers: Sequence[str], samples: int) -> None:
    """Print medians, minima and how many times each peer's time a variant takes: paired by round, and of minima."""
    heads = "".join(f"{'× ' + peer:>24s}" for peer in peers)
    print(f"\n{title}\n{'':30s}{'median ms':>10s}{'min ms':>9s}{'samples/s':>11s}{heads}", flush=True)
    for name, times in seconds.items():
        line = f"{name:30s}{statistics.median(times) * 1e3:10.1f}{min(times) * 1e3:9.1f}{samples / min(times):11.2f}"
        for peer in peers:
            paired = statistics.median(ours / theirs for ours, theirs in zip(times, seconds[peer], strict=True))
            line += f"{paired:16.3f}{min(times) / min(seconds[peer]):8.3f}"
        print(line, flush=True)


def peak_memory(function: Callable[[], object]) -> int:
    """Return the most bytes that the call held at once in tensors of its own."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return peak
