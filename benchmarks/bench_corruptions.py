"""Corrupted images of 224 pixels per second on one core: `python -m benchmarks.bench_corruptions`.

Each rate is over the five severities, as in the creation of a set; `encoded` is the JPEG encoding that follows. Time is
that of the thread, so that other processes count only by their use of caches.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read on import of NumPy and torch

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
    """Return the number of images per second."""
    start = time.thread_time()
    work()
    return count / (time.thread_time() - start)


def corrupt_all(images: list[Tensor], corruption: str) -> list[Tensor]:
    return [
        corrupt_image(image, corruption, severity, seed) for severity in SEVERITIES for seed, image in enumerate(images)
    ]


def encode_all(images: list[Tensor]) -> list[bytes]:
    return [encode_jpeg(image, 85) for image in images]


def main() -> None:
    torch.set_num_threads(1)
    scenes = GeneratedScenes(size=224, length=NUM_IMAGES)
    images = [scenes[index].maps["rgb"] for index in range(NUM_IMAGES)]
    print(f"{corruption_tool_version()}, images/s over {NUM_ROUNDS} rounds of {NUM_IMAGES} images at 5 severities")
    print(f"{'':20s}{'median':>8s}{'max':>8s}{'encoded':>10s}{'bytes':>9s}")
    seconds = 0.0
    for corruption in (*CORRUPTIONS, *EXTRA_CORRUPTIONS):
        corrupted = corrupt_all(images, corruption)  # the first call of some compiles code or reads files
        rates = [images_per_second(partial(corrupt_all, images, corruption), len(corrupted)) for _ in range(NUM_ROUNDS)]
        encoded = statistics.median(
            images_per_second(partial(encode_all, corrupted), len(corrupted)) for _ in range(NUM_ROUNDS)
        )
        median_rate, size = statistics.median(rates), statistics.mean(map(len, encode_all(corrupted)))
        seconds += 1 / median_rate + 1 / encoded if corruption in CORRUPTIONS else 0
        print(f"{corruption:20s}{median_rate:8.0f}{max(rates):8.0f}{encoded:10.0f}{size:9,.0f}", flush=True)
    print(f"15 corruptions at 5 severities, with encoding: {5 * seconds:.2f} s per image")


if __name__ == "__main__":
    main()
