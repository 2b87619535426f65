"""A tiny training with the same result for any number of micro-batches and ranks, and one rank of two."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from c2fmae.core.distributed import World, _average_in_rank_order
from c2fmae.core.granularity import IGNORE
from c2fmae.core.loop import StepReport, TrainingLoop, TrainingState
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import CompiledParts, TrainingConfig, plan_training
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.batch_masker import MaskedScenes
from c2fmae.methods.masked.task import MicroBatch, PretrainingTask
from tests.methods.tiny_methods import (
    build_tiny_method,
    draw_noise_scenes,
    perturb_parameters,
    slice_scenes,
    to_float64,
)

StepHistory = tuple[list[StepReport], list[dict[str, Tensor]]]
"""The report of each step, and all tensors after it."""

SINGLE_PROCESS = World()
WORLD_SIZE, BATCH_SIZE, SIZE, NUM_STEPS = 2, 8, (16, 16), 5
SMALL_OVERRIDES = (
    *("encoder.dim=32", "encoder.depth=1", "encoder.num_heads=2", "encoder.patch_size=8"),
    *("decoder.options.dim=16", "decoder.options.num_heads=2", "num_visible=2"),
)


@dataclass(frozen=True)
class LoopCase:
    """One way to run the steps of a method."""

    method: str = "c2fmae"
    average: str = "samples"
    num_micro_batches: int = 1
    """Micro-batches of a rank."""
    is_float64: bool = True
    """Compute in double precision."""
    nan_at: tuple[int, int] | None = None
    """A step, and the scene of its batch whose image is NaN."""
    overrides: tuple[str, ...] = ()
    delay: int = 0
    """Steps that are enqueued before a report is read."""
    compiled_parts: CompiledParts = "off"
    """What the caller compiles."""

    def make_method(self) -> MaskedAutoencoding:
        """Return a method whose weights all affect the loss."""
        method = build_tiny_method(
            self.method, *SMALL_OVERRIDES, f"loss_average={self.average}", *self.overrides, size=SIZE
        )
        perturb_parameters(method.model)
        method.model.double() if self.is_float64 else method.model.float()
        return method

    def start_training(self, method: MaskedAutoencoding, **settings: Any) -> TrainingState:
        """Return the state before the first step."""
        return TrainingState.create(method.model, make_training_config(**settings))

    def make_loop(
        self, method: MaskedAutoencoding, world: World = SINGLE_PROCESS, **settings: Any
    ) -> TrainingLoop[SceneBatch, MicroBatch]:
        """Return the training loop."""
        config = make_training_config(micro_batch=BATCH_SIZE // world.size // self.num_micro_batches, **settings)
        plan = plan_training(config, num_samples=2 * BATCH_SIZE, world_size=world.size)
        assert plan.num_micro_batches == self.num_micro_batches
        task = FaultyTask(method, config.seed, self.is_float64, self.nan_at, compiled_parts=self.compiled_parts)
        return TrainingLoop(task, config, plan, world, self.delay)

    def run_steps(self, world: World = SINGLE_PROCESS, **settings: Any) -> StepHistory:
        """Run all steps; return the report of each, and all tensors when it is yielded."""
        method = self.make_method()
        training = self.start_training(method, **settings)
        loop, reports, tensors = (
            self.make_loop(method, world, **settings),
            list[StepReport](),
            list[dict[str, Tensor]](),
        )
        for report in loop.run(training, draw_batches(world), lambda: {"said": world.rank + 1}):
            reports.append(report)
            tensors.append({name: tensor.clone() for name, tensor in training.gather_tensors().items()})
        return reports, tensors


def make_training_config(**settings: Any) -> TrainingConfig:
    """Return a config with clipping, averaging and warm-up."""
    defaults = {
        "steps": NUM_STEPS,
        "lr": 1e-3,
        "warmup_steps": 1,
        "final_lr": 0.1,
        "batch_size": BATCH_SIZE,
        "precision": "fp32",
    }
    return TrainingConfig(**defaults | {"clip": 0.5, "ema": 0.9} | settings)


@dataclass(frozen=True)
class FaultyTask(PretrainingTask):
    """A pre-training task, optionally in double precision and with NaN at one step."""

    is_float64: bool = False
    nan_at: tuple[int, int] | None = None

    def split(
        self,
        batch: SceneBatch | Sequence[MaskedScenes],
        *,
        num_micro_batches: int,
        step: int,
        progress: float,
        world: World,
    ) -> list[MicroBatch]:
        """Split as usual, then change the images."""
        micro_batches = super().split(
            batch, num_micro_batches=num_micro_batches, step=step, progress=progress, world=world
        )
        if self.is_float64:
            micro_batches = [replace(each, maps=to_float64(each.maps)) for each in micro_batches]
        if self.nan_at and step == self.nan_at[0]:
            for each in micro_batches:
                if f"scene-{self.nan_at[1]}" in each.keys:
                    each.maps["rgb"][each.keys.index(f"scene-{self.nan_at[1]}")] = torch.nan
        return micro_batches


def draw_batches(world: World = SINGLE_PROCESS) -> Iterator[SceneBatch]:
    """Yield the batches of a rank. Scenes differ in their labels: none, no objects, some cells."""
    size = BATCH_SIZE // world.size
    for step in range(NUM_STEPS):
        scenes = draw_noise_scenes(BATCH_SIZE, SIZE, seed=step)
        scenes.maps["semantic"][0] = IGNORE
        scenes.maps["instance"][[1, 6]] = 0
        scenes.maps["instance"][[2, 3]] = IGNORE
        scenes.maps["semantic"][4, :2] = IGNORE
        yield slice_scenes(scenes, world.rank * size, (world.rank + 1) * size)


METHODS, AVERAGES = ("c2fmae", "mae", "multimae"), ("samples", "cells")
EQUAL_CASES = [
    *(LoopCase(average=average, num_micro_batches=parts) for average, parts in itertools.product(AVERAGES, (1, 2))),
    *(LoopCase("mae", *each) for each in zip(AVERAGES, (1, 2), strict=True)),
    *(LoopCase("multimae", *each) for each in zip(AVERAGES, (2, 1), strict=True)),
    LoopCase(num_micro_batches=2, is_float64=False),
]
NAN_CASE = LoopCase(num_micro_batches=2, nan_at=(2, 5))
ORDERED_CASE = LoopCase(num_micro_batches=2)


class OrderedReductionWorld(World):
    """Two ranks that average gradients in the order of ranks, as more than two do."""

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        wrapped = super().wrap_ddp(model)
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.register_comm_hook(self.size, _average_in_rank_order)
        return wrapped


def run_rank(rank: int, folder: Path) -> None:
    """Run the steps of every case as one rank of two."""
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timeout)
    found = [case.run_steps(World(rank, WORLD_SIZE)) for case in (*EQUAL_CASES, NAN_CASE)]
    found.append(replace(NAN_CASE, delay=1).run_steps(World(rank, WORLD_SIZE)))
    found.append(ORDERED_CASE.run_steps(OrderedReductionWorld(rank, WORLD_SIZE)))
    torch.save([([vars(report) for report in reports], tensors) for reports, tensors in found], folder / f"{rank}.pt")
    dist.destroy_process_group()
