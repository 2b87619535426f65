"""Time of painting masks and of regions: `python -m benchmarks.bench_painting [painting|regions]`.

Painting is compared with a plain loop that assigns a number to the cells of each mask; `regions` with scikit-image's
Felzenszwalb alone.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.tables import print_costs
from c2fmae.core.scene import Scene
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.image_regions import find_felzenszwalb_regions
from c2fmae.data.painting import keep_masks, number_instances, paint_masks, suppress_masks
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.objects import ObjectRules, finish_objects
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.registry import build_labellers

NUM_MASKS, IMAGE_SIZE = 100, (375, 500)


def draw_ellipses(rows: int, columns: int) -> Tensor:
    """Return masks of 6 to 60 % of the sides, the largest first."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:rows, :columns] / np.array([rows, columns])[:, None, None]
    centres, radii = rng.uniform(0, 1, (NUM_MASKS, 2)), rng.uniform(0.03, 0.3, (NUM_MASKS, 2))
    masks = [
        ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
        for centre, radius in zip(centres, radii, strict=True)
    ]
    return torch.from_numpy(np.stack(sorted(masks, key=np.count_nonzero, reverse=True)))


def assign_in_loop(masks: Tensor) -> np.ndarray:
    ids = np.zeros(masks.shape[1:], np.int32)
    for number, mask in enumerate(masks.numpy(), start=1):
        ids[mask] = number
    return ids


def time_painting() -> None:
    for stride in (4, 1):
        time_painting_at(stride)


def time_painting_at(stride: int) -> None:
    rows, columns = (-(-length // stride) for length in IMAGE_SIZE)
    masks, nothing = draw_ellipses(rows, columns), [None] * NUM_MASKS
    scores = torch.rand(NUM_MASKS, generator=torch.Generator().manual_seed(0))
    order, candidates = list(range(NUM_MASKS)), torch.arange(NUM_MASKS)
    rules, min_cells = ObjectRules(), 0.001 * rows * columns
    painted = paint_masks(masks, order, min_cells=min_cells)
    steps: dict[str, Callable[[], object]] = {
        "plain loop": lambda: assign_in_loop(masks),
        "paint_masks": lambda: paint_masks(masks, order, min_cells=min_cells),
        "keep_masks": lambda: keep_masks(masks, min_cells=min_cells, max_pieces=30),
        "suppress_masks": lambda: suppress_masks(masks, scores, candidates, max_overlap=0.8, max_masks=100),
        "number_instances": lambda: number_instances(painted, ignore=None),
        "finish_objects, all of these": lambda: finish_objects(
            masks, scores, nothing, nothing, nothing, stride=stride, image_size=IMAGE_SIZE, rules=rules
        ),
    }
    title = f"{NUM_MASKS} masks of an image of 500×375 at stride {stride}"
    print_costs(title, time_in_turn(steps, rounds=15), peers=["plain loop"], samples=1)


def time_regions() -> None:
    scene: Scene = GeneratedScenes(size=256, length=1)[0]
    image = scene.maps["rgb"][:, :200].contiguous()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    (labeller,) = build_labellers(None, "regions", LabellerContext())
    min_size = round(0.003 * image.shape[1] * image.shape[2])
    steps: dict[str, Callable[[], object]] = {
        "scikit-image alone": lambda: find_felzenszwalb_regions(pixels, scale=300, sigma=0.8, min_size=min_size),
        "regions": lambda: labeller.label([LabelInput("a", image)], 4),
    }
    title = "A generated image of 256×200 at stride 4"
    print_costs(title, time_in_turn(steps, rounds=9), peers=["scikit-image alone"], samples=1)


SECTIONS = {"painting": time_painting, "regions": time_regions}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or SECTIONS:
        SECTIONS[name]()
