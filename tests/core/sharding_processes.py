"""The work of each of two ranks that train with sharded weights."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule

from c2fmae.core.checkpoint import load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.experiment_config import SavingConfig
from c2fmae.core.loop import StepReport, TrainingLoop, TrainingState
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.saving import Saver, has_finite_weights
from c2fmae.core.scene import SceneBatch
from c2fmae.core.sharding import to_local_tensor, unshard_tensors, unsharded
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.task import MicroBatch
from tests.core.loop_processes import NUM_STEPS, SIZE, LoopCase, draw_batches, make_training_config
from tests.methods.tiny_methods import draw_noise_scenes

WORLD_SIZE = 2
RECORDED_STEPS = (1, NUM_STEPS)
"""Steps whose tensors are recorded."""

FLOAT64_CASE = LoopCase(num_micro_batches=2)
FLOAT32_CASE = LoopCase("mae", num_micro_batches=2, is_float64=False)
NAN_CASE = LoopCase("mae", nan_at=(2, 5), overrides=("encoder.grad_checkpointing=true",))
RUNS: dict[str, tuple[LoopCase, dict[str, Any]]] = {
    "float64": (FLOAT64_CASE, {"layer_decay": 0.5}),
    "float64, each gradient clipped": (LoopCase("mae"), {"clip": None, "clip_each": 0.02}),
    "float32": (FLOAT32_CASE, {}),
    "bf16": (FLOAT32_CASE, {"precision": "bf16"}),
    "nan": (NAN_CASE, {}),
    "nan, late": (replace(NAN_CASE, delay=1), {}),
}


@dataclass(frozen=True)
class ShardedRun:
    """A training whose weights are sharded over ranks, or replicated on each."""

    method: MaskedAutoencoding
    training: TrainingState
    loop: TrainingLoop[SceneBatch, MicroBatch]

    @classmethod
    def create(cls, case: LoopCase, world: World, *, is_sharded: bool = True, **settings: Any) -> "ShardedRun":
        """Return a training before its first step."""
        method = case.make_method()
        prepare_model(method.model, make_training_config(sharded=is_sharded, **settings), world)
        return cls(method, case.start_training(method, **settings), case.make_loop(method, world, **settings))

    def iter_steps(self, last: int = NUM_STEPS) -> Iterator[StepReport]:
        """Train up to a step."""
        world = self.loop.world
        rest = list(draw_batches(world))[self.training.step : last]
        return self.loop.run(self.training, rest, lambda: {"requests": world.rank + 1})

    def train_to(self, step: int) -> "ShardedRun":
        """Train up to a step and stop."""
        assert len(list(self.iter_steps(step))) > 0
        return self

    def resume(self, path: Path) -> "ShardedRun":
        """Resume from a checkpoint."""
        checkpoint = load_checkpoint(path)
        self.training.restore(checkpoint.tensors, step=checkpoint.step)
        return self

    def save(self, folder: Path) -> Path:
        """Save a checkpoint as runs do; when this returns, all ranks can read it."""
        with Saver(folder, SavingConfig(), self.loop.world, {}) as saver:
            saver.save(self.training)
        dist.barrier()
        return folder / f"step-{self.training.step:08d}"

    def memory_bytes(self) -> dict[str, int]:
        """Return the memory of weights, moments and EMA on this rank, including padding."""
        state = self.training.optimiser.state
        parts = {
            "weights": [*self.method.model.parameters()],
            "moments": [moments[key] for moments in state.values() for key in ("exp_avg", "exp_avg_sq")],
            "ema": [*(self.training.ema or {}).values()],
        }
        return {
            name: sum(to_local_tensor(tensor).untyped_storage().nbytes() for tensor in tensors)
            for name, tensors in parts.items()
        }


def run_sharded_and_replicated(world: World) -> dict[str, Any]:
    """Train every case with sharded and with replicated weights (DDP)."""
    return {
        f"{name} {way}": train_and_record(case, world, is_sharded=way == "sharded", **settings)
        for name, (case, settings) in RUNS.items()
        for way in ("sharded", "ddp")
    }


def run_compiled(world: World) -> dict[str, Any]:
    """Train with sharded weights and compiled blocks, and count the graphs."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    run = train_and_record(FLOAT32_CASE, world, compile="blocks")
    return {"run": run, "graphs": counters["stats"]["unique_graphs"]}


def train_and_record(
    case: LoopCase, world: World, **settings: Any
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Tensor]]]:
    """Train, and return the reports and the tensors after some steps."""
    run = ShardedRun.create(case, world, **settings)
    reports, tensors = list[dict[str, Any]](), dict[int, dict[str, Tensor]]()
    for report in run.iter_steps():
        reports.append(vars(report))
        if report.step in RECORDED_STEPS:
            tensors[report.step] = {name: tensor.clone() for name, tensor in run.training.gather_tensors().items()}
    return reports, tensors


def alternate_sharding(world: World, folder: Path) -> None:
    """Take two steps replicated, two sharded, and one replicated again, each from the checkpoint of the last."""
    replicated = ShardedRun.create(FLOAT64_CASE, world, is_sharded=False).train_to(2).save(folder)
    sharded = ShardedRun.create(FLOAT64_CASE, world).resume(replicated).train_to(4).save(folder)
    ShardedRun.create(FLOAT64_CASE, world, is_sharded=False).resume(sharded).train_to(NUM_STEPS).save(folder)


def stop_and_resume(world: World, folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Stop after two steps and resume; return the memory of this rank without a stop and after one."""
    uninterrupted = ShardedRun.create(FLOAT32_CASE, world).train_to(NUM_STEPS)
    uninterrupted.save(folder / "uninterrupted")
    stopped = ShardedRun.create(FLOAT32_CASE, world).train_to(2).save(folder / "resumed")
    resumed = ShardedRun.create(FLOAT32_CASE, world).resume(stopped)
    memory = uninterrupted.memory_bytes(), resumed.memory_bytes()
    resumed.train_to(NUM_STEPS).save(folder / "resumed")
    return memory


def predict_during_training(world: World, folder: Path) -> list[Tensor]:
    """Predict on the main rank before the first and after every second step, more often each time."""
    run, predictions = ShardedRun.create(FLOAT32_CASE, world), []
    for step in range(NUM_STEPS + 1):
        if step:
            run.train_to(step)
        if step % 2 == 0:
            with unsharded(run.method.model):
                predictions += [predict_hidden(run.method) for _ in range(step + 1) if world.is_main]
    run.save(folder)
    return predictions


def predict_hidden(method: MaskedAutoencoding) -> Tensor:
    """Predict the hidden patches of two images."""
    scenes = draw_noise_scenes(2, SIZE, seed=9)
    masks = method.sample_masks(scenes, progress=1.0, generator=torch.Generator().manual_seed(0))
    return method.predict(scenes, masks).maps["rgb"]


def check_finite_with_nan(world: World, folder: Path) -> tuple[bool, bool]:
    """Return whether weights are reported as finite, before and after one on the second rank becomes NaN."""
    run = ShardedRun.create(FLOAT32_CASE, world)
    before = has_finite_weights(run.method.model)
    if not world.is_main:
        to_local_tensor(next(run.method.model.parameters()).detach()).fill_(torch.nan)
    run.save(folder)
    return before, has_finite_weights(run.method.model)


def run_rank(rank: int, folder: Path) -> None:
    """Run everything as one of two ranks."""
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timeout)
    world = World(rank, WORLD_SIZE)
    model = ShardedRun.create(FLOAT64_CASE, world).method.model
    alternate_sharding(world, folder / "alternating")
    results = {
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "runs": run_sharded_and_replicated(world),
        "bytes": stop_and_resume(world, folder),
        "predictions": predict_during_training(world, folder / "predicting"),
        "unsharded": unshard_tensors(model.state_dict()),
        "is finite": check_finite_with_nan(world, folder / "nan"),
        "compiled": run_compiled(world),
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
