"""Training of a segmenter in two processes, for test_experiment.py."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.segmentation.experiment import build_segmentation


def run_steps(config: SegmentConfig, world: World) -> dict[str, Any]:
    """Return the losses and the moments of three steps in double precision, and the confusion matrix of a test."""
    torch.set_num_threads(1)
    experiment = build_segmentation(config, world)
    confusion = experiment.evaluator.evaluate(experiment.segmenter).confusion
    experiment.segmenter.double()
    training = TrainingState.create(experiment.segmenter, config.training)
    loop = TrainingLoop(experiment.task, config.training, experiment.plan, world)
    with experiment.open_batches(0) as batches:
        reports = [report.values for report in islice(loop.run(training, batches), 3)]
    tensors = {name: tensor for name, tensor in training.gather_tensors().items() if name.endswith("/exp_avg")}
    return {"values": reports, "tensors": tensors, "confusion": confusion}


def run_rank(rank: int, config: str, folder: Path) -> None:
    """Run the steps as one of two ranks, and store what the first one returns."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = run_steps(SegmentConfig.model_validate_json(config), World(rank, 2))
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()
