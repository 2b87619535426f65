"""Generated scenes per second on one core: `python -m benchmarks.bench_generated`.

Time is that of the thread, so that other processes count only by their use of caches.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read on import of NumPy and torch

import itertools
import statistics
import time

import torch

from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.generated.difficulty import DIFFICULTY_LEVELS

NUM_SCENES, NUM_ROUNDS = 64, 9


def scenes_per_second(scenes: GeneratedScenes) -> float:
    """Return the number of scenes per second."""
    start = time.thread_time()
    for index in range(len(scenes)):
        scenes[index]
    return len(scenes) / (time.thread_time() - start)


def main() -> None:
    torch.set_num_threads(1)
    variants = [
        GeneratedScenes(size=size, length=NUM_SCENES, difficulty=difficulty)
        for difficulty, size in itertools.product(DIFFICULTY_LEVELS, (64, 128, 224))
    ]
    for scenes in variants:
        scenes_per_second(scenes)
    rounds = [[scenes_per_second(scenes) for scenes in variants] for _ in range(NUM_ROUNDS)]
    print(f"Scenes/s over {NUM_ROUNDS} rounds of the same {NUM_SCENES} scenes\n{'':15s}{'median':>8s}{'max':>8s}")
    for scenes, rates in zip(variants, zip(*rounds, strict=True), strict=True):
        print(f"{scenes.difficulty:8s}{scenes.size:4d} px{statistics.median(rates):8.0f}{max(rates):8.0f}")


if __name__ == "__main__":
    main()
