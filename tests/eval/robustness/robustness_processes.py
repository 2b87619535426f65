"""What each of two processes does: a classifier on a small set, and what it found."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from c2fmae.core.distributed import World
from c2fmae.data.suites.cells import Cell
from c2fmae.eval.robustness.evaluation import Found, RobustnessConfig, evaluate_robustness
from tests.eval.robustness.colour_classifier import THOUSAND, FolderOf, entrant, photo, scenes, shifted

WORLD = 2


def found(world: World, folder: Path) -> list[Found]:
    """Batches of two of seven photos, and of one: the second process has none of the latter."""
    cells = [
        Cell("fog", 1, scenes([(n, photo(n + n % 2)) for n in range(7)]), None),
        Cell("fog", 2, scenes([(5, photo(5))]), None),
    ]
    config = RobustnessConfig(batch_size=2, workers=1, keep_probabilities=True)
    of = shifted(cells, THOUSAND, kind="imagenet-c", is_cut=True)
    return evaluate_robustness([entrant()], [of], None, config, FolderOf(folder), world)


def numbers(all_found: list[Found]) -> list[dict[str, object]]:
    """The metrics as values."""
    return [vars(metric) for each in all_found for metric in each.metrics]


def run(rank: int, folder: Path) -> None:
    """Evaluate as one of two processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    torch.save(numbers(found(World(rank, WORLD), folder / "both")), folder / f"{rank}.pt")
    dist.destroy_process_group()
