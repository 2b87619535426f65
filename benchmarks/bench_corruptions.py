"""How many photos of 224 pixels one core corrupts a second: `python -m benchmarks.bench_corruptions`.

Each rate is that of the five severities in turn, as a set is made; encoding is the JPEG that follows. Seconds are those
that the thread ran, so other work on the machine counts only where it takes its caches.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy and torch are imported

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from c2fmae.data.corruption.apply import corrupt_photo, encode_corrupted, tool_name
from c2fmae.data.corruption.names import CORRUPTIONS, EXTRA, SEVERITIES
from c2fmae.data.generated import GeneratedScenes

PHOTOS, ROUNDS = 4, 5


def rate(work: Callable[[], object], count: int) -> float:
    """Photos per second."""
    start = time.thread_time()
    work()
    return count / (time.thread_time() - start)


def spoilt_all(photos: list[Tensor], corruption: str) -> list[Tensor]:
    return [
        corrupt_photo(photo, corruption, severity, seed) for severity in SEVERITIES for seed, photo in enumerate(photos)
    ]


def encoded_all(photos: list[Tensor]) -> list[bytes]:
    return [encode_corrupted(photo, 85) for photo in photos]


def main() -> None:
    torch.set_num_threads(1)
    scenes = GeneratedScenes(224, PHOTOS)
    photos = [scenes[index].maps["rgb"] for index in range(PHOTOS)]
    print(f"{tool_name()}, photos/s, of {ROUNDS} rounds over {PHOTOS} photos at 5 severities")
    print(f"{'':20s}{'median':>8s}{'best':>8s}{'encoded':>10s}{'bytes':>9s}")
    seconds = 0.0
    for corruption in (*CORRUPTIONS, *EXTRA):
        spoilt = spoilt_all(photos, corruption)  # the first time, some compile or read what they need
        rates = [rate(partial(spoilt_all, photos, corruption), len(spoilt)) for _ in range(ROUNDS)]
        encoded = statistics.median(rate(partial(encoded_all, spoilt), len(spoilt)) for _ in range(ROUNDS))
        middle, size = statistics.median(rates), statistics.mean(map(len, encoded_all(spoilt)))
        seconds += 1 / middle + 1 / encoded if corruption in CORRUPTIONS else 0
        print(f"{corruption:20s}{middle:8.0f}{max(rates):8.0f}{encoded:10.0f}{size:9,.0f}", flush=True)
    print(f"the 15 at five severities, encoded: {5 * seconds:.2f} s a photo")


if __name__ == "__main__":
    main()
