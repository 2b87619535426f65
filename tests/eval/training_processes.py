"""Trainings on a backbone in two processes."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn  # type: ignore[attr-defined]

from c2fmae.core.distributed import World
from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.loop import TrainingLoop, TrainingState

BuildExperiment = Callable[[Any, World], Any]


def run_steps(build: BuildExperiment, config: ExperimentConfig, world: World) -> dict[str, Any]:
    """Return the losses and the moments of three steps in double precision, and the scores of a test."""
    torch.set_num_threads(1)
    experiment = build(config, world)
    scores = experiment.evaluator.evaluate(experiment.model)
    experiment.model.double()
    training = TrainingState.create(experiment.model, config.training)
    loop = TrainingLoop(experiment.task, config.training, experiment.plan, world)
    with experiment.open_batches(0) as batches:
        reports = [report.values for report in islice(loop.run(training, batches), 3)]
    tensors = {name: tensor for name, tensor in training.gather_tensors().items() if name.endswith("/exp_avg")}
    return {"values": reports, "tensors": tensors, "scores": scores}


def run_steps_in_two_processes(build: BuildExperiment, config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Return what the first of two processes returns."""
    spawn(_run_rank, args=(build, config, folder), nprocs=2)
    results: dict[str, Any] = torch.load(folder / "results.pt", weights_only=False)
    return results


def _run_rank(rank: int, build: BuildExperiment, config: ExperimentConfig, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = run_steps(build, config, World(rank, 2))
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()
