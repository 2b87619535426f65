"""Tables of the timings of `c2fmae.eval.cost.speed_and_memory`."""

import statistics
from collections.abc import Mapping, Sequence


def print_speeds(title: str, seconds: Mapping[str, list[float]], *, peer: str, samples: int) -> None:
    """Print median and minimum times, and the speed relative to the peer: median of paired rounds, and of minima."""
    print(f"\n{title}\n{'':34s}{'median ms':>10s}{'min ms':>9s}{'samples/s':>11s}{'x peer':>9s}{'of minima':>11s}")
    for name, times in seconds.items():
        paired = statistics.median(theirs / ours for ours, theirs in zip(times, seconds[peer], strict=True))
        median, minimum = statistics.median(times), min(times)
        print(
            f"{name:34s}{median * 1e3:10.2f}{minimum * 1e3:9.2f}{samples / median:11,.0f}"
            f"{paired:9.2f}{min(seconds[peer]) / minimum:11.2f}"
        )


def print_costs(title: str, seconds: Mapping[str, list[float]], *, peers: Sequence[str], samples: int) -> None:
    """Print median and minimum times, and the time relative to each peer: median of paired rounds, and of minima."""
    headers = "".join(f"{'× ' + peer:>24s}" for peer in peers)
    print(f"\n{title}\n{'':30s}{'median ms':>10s}{'min ms':>9s}{'samples/s':>11s}{headers}", flush=True)
    for name, times in seconds.items():
        line = f"{name:30s}{statistics.median(times) * 1e3:10.1f}{min(times) * 1e3:9.1f}{samples / min(times):11.2f}"
        for peer in peers:
            paired = statistics.median(ours / theirs for ours, theirs in zip(times, seconds[peer], strict=True))
            line += f"{paired:16.3f}{min(times) / min(seconds[peer]):8.3f}"
        print(line, flush=True)
