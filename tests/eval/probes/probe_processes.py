"""Probes in two processes, for test_probe_processes.py."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from c2fmae.config.watching import OnlineProbesConfig
from c2fmae.core.distributed import World
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes import extraction, knn, online
from c2fmae.eval.probes.config import (
    AttentiveProbeEvaluation,
    DenseProbeEvaluation,
    KnnEvaluation,
    LinearProbeEvaluation,
)
from c2fmae.eval.probes.online import open_online_probes
from tests.eval.tiny_backbones import SPEC, tiny_backbone

WORLD_SIZE = 2


def make_probe_evaluations(folder: Path) -> Iterator[Evaluation]:
    """Yield all probes, with the same training and test set."""
    sets = {"train": str(folder / "train"), "test": str(folder / "test")}
    yield KnnEvaluation(**sets, workers=0, ks=(3,))
    yield LinearProbeEvaluation(**sets, workers=0, epochs=3)
    yield AttentiveProbeEvaluation(**sets, workers=0, epochs=2, num_queries=4)
    yield DenseProbeEvaluation(**sets, workers=0, epochs=2)


def compute_probe_metrics(world: World, folder: Path, cache: Path) -> list[Metric]:
    """Return the metrics of all probes, with small chunks and blocks, of which each rank has another number."""
    extraction.MAX_SCENES_PER_CHUNK = 8
    online._IMAGES_PER_CHUNK = 4
    knn.QUERIES_PER_BLOCK = 5  # type: ignore[attr-defined]
    model = ModelUnderTest.in_memory("tiny", cache, world=world, backbone=tiny_backbone())
    config = OnlineProbesConfig(data=str(folder), train_samples=25)
    probes = open_online_probes(config, SPEC, None, world, num_workers=0)
    accuracies = probes.compute_accuracies(model.backbone.state_dict())
    return [
        *(metric for evaluation in make_probe_evaluations(folder) for metric in evaluation.run(model)),
        *(Metric(key, accuracy, 21) for key, accuracy in accuracies.items()),
    ]


def run_rank(rank: int, folder: Path) -> None:
    """Compute the metrics as one of two ranks, and save them."""
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=120))
    metrics = compute_probe_metrics(World(rank, WORLD_SIZE), folder, folder / "both")
    torch.save([vars(metric) for metric in metrics], folder / f"{rank}.pt")
    dist.destroy_process_group()
