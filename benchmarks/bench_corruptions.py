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

from c2fmae.data.corruption.apply import corrupt_image, corruption_tool_version, encode_jpeg
from c2fmae.data.corruption.names import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from c2fmae.data.generated import GeneratedScenes

NUM_IMAGES, NUM_ROUNDS = 4, 5


def images_per_second(work: Callable[[], object], count: int) -> float:
    """Photos per second."""
    start = time.thread_time()
    work()
    return count / (time.thread_time() - start)


def corrupt_all(images: list[Tensor], corruption: str) -> list[Tensor]:
    return [
        corrupt_image(photo, corruption, severity, seed) for severity in SEVERITIES for seed, photo in enumerate(images)
    ]


def encode_all(images: list[Tensor]) -> list[bytes]:
    return [encode_jpeg(photo, 85) for photo in images]


def main() -> None:
    torch.set_num_threads(1)
    scenes = GeneratedScenes(size=224, length=NUM_IMAGES)
    photos = [scenes[index].maps["rgb"] for index in range(NUM_IMAGES)]
    print(f"{corruption_tool_version()}, photos/s, of {NUM_ROUNDS} rounds over {NUM_IMAGES} photos at 5 severities")
    print(f"{'':20s}{'median':>8s}{'best':>8s}{'encoded':>10s}{'bytes':>9s}")
    seconds = 0.0
    for corruption in (*CORRUPTIONS, *EXTRA_CORRUPTIONS):
        corrupted = corrupt_all(photos, corruption)  # the first time, some compile or read what they need
        rates = [images_per_second(partial(corrupt_all, photos, corruption), len(corrupted)) for _ in range(NUM_ROUNDS)]
        encoded = statistics.median(
            images_per_second(partial(encode_all, corrupted), len(corrupted)) for _ in range(NUM_ROUNDS)
        )
        median_rate, size = statistics.median(rates), statistics.mean(map(len, encode_all(corrupted)))
        seconds += 1 / median_rate + 1 / encoded if corruption in CORRUPTIONS else 0
        print(f"{corruption:20s}{median_rate:8.0f}{max(rates):8.0f}{encoded:10.0f}{size:9,.0f}", flush=True)
    print(f"the 15 at five severities, encoded: {5 * seconds:.2f} s a photo")


if __name__ == "__main__":
    main()
