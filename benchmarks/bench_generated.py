"""How many generated scenes one core draws a second: `python -m benchmarks.bench_generated`.

Seconds are those that the thread ran, so other work on the machine counts only where it takes its caches.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy and torch are imported

import itertools
import statistics
import time

import torch

from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.generated.difficulty import DIFFICULTY_LEVELS

NUM_SCENES, NUM_ROUNDS = 64, 9


def scenes_per_second(scenes: GeneratedScenes) -> float:
    """Images per second."""
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
    print(f"Images/s, of {NUM_ROUNDS} rounds over the same {NUM_SCENES} scenes\n{'':15s}{'median':>8s}{'best':>8s}")
    for scenes, rates in zip(variants, zip(*rounds, strict=True), strict=True):
        print(f"{scenes.difficulty:8s}{scenes.size:4d} px{statistics.median(rates):8.0f}{max(rates):8.0f}")


if __name__ == "__main__":
    main()
