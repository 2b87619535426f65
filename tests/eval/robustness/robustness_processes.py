"""Evaluation of a classifier on a small set in two processes."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from c2fmae.core.distributed import World
from c2fmae.data.suites import Cell
from c2fmae.eval.robustness.config import RobustnessEvaluation
from c2fmae.eval.robustness.evaluation import RobustnessResult, evaluate_robustness
from tests.eval.robustness.colour_classifier import (
    IMAGENET_LABELS,
    make_class_image,
    make_colour_classifier,
    make_labelled_scenes,
    make_shifted_set,
)

WORLD_SIZE = 2


def compute_robustness(world: World, folder: Path) -> list[RobustnessResult]:
    """Evaluate on cells of seven images and of one, in batches of two: the second rank has no batch of the latter."""
    cells = [
        Cell("fog", 1, make_labelled_scenes([(n, make_class_image(n + n % 2)) for n in range(7)]), None),
        Cell("fog", 2, make_labelled_scenes([(5, make_class_image(5))]), None),
    ]
    config = RobustnessEvaluation(batch_size=2, workers=1, keep_probabilities=True)
    shifted_set = make_shifted_set(cells, IMAGENET_LABELS, suite="imagenet-c", is_cropped=True)
    return evaluate_robustness(config, [make_colour_classifier()], [shifted_set], None, [folder], world)


def list_metrics(results: list[RobustnessResult]) -> list[dict[str, object]]:
    """Return the metrics of all results as dictionaries."""
    return [vars(metric) for result in results for metric in result.metrics]


def run_rank(rank: int, folder: Path) -> None:
    """Evaluate as one of two processes."""
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=60))
    torch.save(list_metrics(compute_robustness(World(rank, WORLD_SIZE), folder / "both")), folder / f"{rank}.pt")
    dist.destroy_process_group()
