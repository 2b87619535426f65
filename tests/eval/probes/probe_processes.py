"""What each of two processes does: probes of frozen features, and what it found."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from c2fmae.core.distributed import World
from c2fmae.eval.evaluation import Evaluation, Metric, Subject
from c2fmae.eval.probes import extraction, knn
from c2fmae.eval.probes.attentive import AttentiveConfig
from c2fmae.eval.probes.dense import DenseConfig
from c2fmae.eval.probes.knn import KnnConfig
from c2fmae.eval.probes.linear import LinearConfig
from tests.eval.tiny_backbones import tiny_backbone

WORLD = 2


def evaluations(folder: Path) -> Iterator[Evaluation]:
    """All probes, of the same two sets."""
    sets = {"train": str(folder / "train"), "test": str(folder / "test")}
    yield KnnConfig(**sets, workers=0, ks=(3,))
    yield LinearConfig(**sets, workers=0, epochs=3)
    yield AttentiveConfig(**sets, workers=0, epochs=2, num_queries=4)
    yield DenseConfig(**sets, workers=0, epochs=2)


def found(world: World, folder: Path, cache: Path) -> list[Metric]:
    """The metrics of all of them, in chunks and blocks so small that each process has some, and not as many."""
    extraction.CHUNK = 8
    knn.QUERIES_AT_ONCE = 5  # type: ignore[attr-defined]
    subject = Subject("tiny", tiny_backbone(), cache, world)
    return [metric for evaluation in evaluations(folder) for metric in evaluation.run(subject)]


def run(rank: int, folder: Path) -> None:
    """Evaluate as one of two processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    metrics = found(World(rank, WORLD), folder, folder / "both")
    torch.save([vars(metric) for metric in metrics], folder / f"{rank}.pt")
    dist.destroy_process_group()
