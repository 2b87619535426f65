"""Speed of drawing the random numbers of masks: `python -m benchmarks.bench_noise`.

One of eight processes draws the numbers of its 256 of 2,048 images, of all 2,048 by torch's generator, or of its own
by a `RowGenerator`. Both run on one thread, in turn.
"""

from collections.abc import Callable

import torch

from benchmarks.tables import print_speeds
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.masking.noise import RowGenerator, draw_noise

TOTAL, IMAGES, NUM_PATCHES = 2048, range(512, 768), 196


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {len(IMAGES)} of {TOTAL} images, 3 × {NUM_PATCHES} patches")
    concentration, generator, rows = (
        torch.ones(3, dtype=torch.float64),
        torch.Generator().manual_seed(0),
        RowGenerator(0),
    )
    variants: dict[str, Callable[[], object]] = {
        "torch.Generator, whole batch": lambda: draw_noise(generator, IMAGES, TOTAL, NUM_PATCHES, concentration),
        "RowGenerator, own rows": lambda: draw_noise(rows, IMAGES, TOTAL, NUM_PATCHES, concentration),
        "one noise of own rows": lambda: rows.draw_uniform(1, range(3 * IMAGES.start, 3 * IMAGES.stop), NUM_PATCHES),
        "shares of own rows": lambda: rows.draw_shares(IMAGES, concentration),
    }
    print_speeds(
        "Random numbers of masks",
        time_in_turn(variants, rounds=25),
        peer="torch.Generator, whole batch",
        samples=len(IMAGES),
    )


if __name__ == "__main__":
    main()
