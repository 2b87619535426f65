"""A tiny training that comes to the same however its batches are shared out, and what each of two processes does."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from c2fmae.core.distributed import World, _average_in_order
from c2fmae.core.loop import Loop, Report, Training
from c2fmae.core.scene import IGNORE, SceneBatch
from c2fmae.core.training import TrainingConfig, plan_of
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.task import Part, PretrainingTask
from tests.methods.tiny_methods import noise_scenes, part, rough, tiny

Run = tuple[list[Report], list[dict[str, Tensor]]]
"""What is reported of each step, and all tensors after it."""

ALONE = World()
WORLD, BATCH, SIZE, STEPS = 2, 8, (16, 16), 5
SMALL = (
    *("encoder.dim=32", "encoder.depth=1", "encoder.num_heads=2", "encoder.patch_size=8"),
    *("decoder.dim=16", "decoder.num_heads=2", "num_visible=2"),
)


@dataclass(frozen=True)
class Case:
    """One way to take the steps of a method."""

    method: str = "c2fmae"
    average: str = "samples"
    parts: int = 1
    """Micro-batches of a process."""
    is_wide: bool = True
    """In double precision."""
    poison: tuple[int, int] | None = None
    """A step, and the scene of its batch whose photo is not a number."""
    overrides: tuple[str, ...] = ()

    def build(self) -> MaskedAutoencoding:
        """A model whose weights all matter."""
        method = tiny(self.method, *SMALL, f"average={self.average}", *self.overrides, size=SIZE)
        rough(method.model)
        method.model.double() if self.is_wide else method.model.float()
        return method

    def training(self, method: MaskedAutoencoding, **settings: Any) -> Training:
        """What has not begun."""
        return Training.start(method.model, config_of(**settings))

    def loop(self, method: MaskedAutoencoding, world: World = ALONE, **settings: Any) -> Loop[SceneBatch, Part]:
        """What takes the steps."""
        config = config_of(micro_batch=BATCH // world.size // self.parts, **settings)
        plan = plan_of(config, num_samples=2 * BATCH, processes=world.size)
        assert plan.micro_batches == self.parts
        return Loop(ProbedTask(method, config.seed, self.is_wide, self.poison), config, plan, world)

    def run(self, world: World = ALONE, **settings: Any) -> Run:
        """Take all steps; what is reported of each, and all tensors after it."""
        method = self.build()
        training = self.training(method, **settings)
        loop, reports, tensors = self.loop(method, world, **settings), list[Report](), list[dict[str, Tensor]]()
        for report in loop.steps(training, batches(world), lambda: {"said": world.rank + 1}):
            reports.append(report)
            tensors.append({name: tensor.clone() for name, tensor in training.tensors().items()})
        return reports, tensors


def config_of(**settings: Any) -> TrainingConfig:
    """Steps with everything on that may be."""
    usual = {"steps": STEPS, "lr": 1e-3, "warmup_steps": 1, "final_lr": 0.1, "batch_size": BATCH, "precision": "fp32"}
    return TrainingConfig(**usual | {"clip": 0.5, "ema": 0.9} | settings)


@dataclass(frozen=True)
class ProbedTask(PretrainingTask):
    """The usual task, in double precision perhaps, and with something that is not a number at one step."""

    is_wide: bool = False
    poison: tuple[int, int] | None = None

    def split(self, batch: SceneBatch, *, parts: int, step: int, progress: float, world: World) -> list[Part]:
        """Cut as usual, then change the photos."""
        found = super().split(batch, parts=parts, step=step, progress=progress, world=world)
        if self.is_wide:
            found = [
                replace(each, maps={k: v.double() if v.is_floating_point() else v for k, v in each.maps.items()})
                for each in found
            ]
        if self.poison and step == self.poison[0]:
            for each in found:
                if f"scene-{self.poison[1]}" in each.keys:
                    each.maps["rgb"][each.keys.index(f"scene-{self.poison[1]}")] = torch.nan
        return found


def batches(world: World = ALONE) -> Iterator[SceneBatch]:
    """A process's share of batches whose scenes differ in what is labelled: nothing, no object, some cells."""
    each = BATCH // world.size
    for step in range(STEPS):
        scenes = noise_scenes(BATCH, SIZE, seed=step)
        scenes.maps["semantic"][0] = IGNORE
        scenes.maps["instance"][[1, 6]] = 0
        scenes.maps["instance"][[2, 3]] = IGNORE
        scenes.maps["semantic"][4, :2] = IGNORE
        yield part(scenes, world.rank * each, (world.rank + 1) * each)


METHODS, AVERAGES = ("c2fmae", "mae", "multimae"), ("samples", "cells")
SHARED = [
    *(Case(average=average, parts=parts) for average, parts in itertools.product(AVERAGES, (1, 2))),
    *(Case("mae", *each) for each in zip(AVERAGES, (1, 2), strict=True)),
    *(Case("multimae", *each) for each in zip(AVERAGES, (2, 1), strict=True)),
    Case(parts=2, is_wide=False),
]
POISONED = Case(parts=2, poison=(2, 5))
IN_ORDER = Case(parts=2)


class InOrder(World):
    """Two processes that average gradients as more than two do."""

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = super().wrap(model)
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.register_comm_hook(self.size, _average_in_order)
        return wrapped


def run(rank: int, folder: Path) -> None:
    """Take the steps of every case as one of two processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timeout)
    found = [case.run(World(rank, WORLD)) for case in (*SHARED, POISONED)]
    found.append(IN_ORDER.run(InOrder(rank, WORLD)))
    torch.save([([vars(report) for report in reports], tensors) for reports, tensors in found], folder / f"{rank}.pt")
    dist.destroy_process_group()
