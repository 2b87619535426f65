"""What each of two processes does whose weights are shared out over both."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from c2fmae.core.checkpoint import load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.loop import Loop, Report, Training
from c2fmae.core.saving import Saver, SavingConfig, is_finite
from c2fmae.core.scene import SceneBatch
from c2fmae.core.sharding import own_part, whole
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.task import Part
from tests.core.loop_processes import SIZE, STEPS, Case, batches
from tests.methods.tiny_methods import noise_scenes

WORLD = 2
KEPT = (1, STEPS)
"""Steps whose tensors are kept."""

WIDE = Case(parts=2)
SINGLE = Case("mae", parts=2, is_wide=False)
POISONED = Case("mae", poison=(2, 5), overrides=("encoder.checkpoint=true",))
RUNS: dict[str, tuple[Case, dict[str, Any]]] = {
    "wide": (WIDE, {"layer_decay": 0.5}),
    "single": (SINGLE, {}),
    "half": (SINGLE, {"precision": "bf16"}),
    "poisoned": (POISONED, {}),
}


@dataclass(frozen=True)
class Each:
    """A training of which a process has a part, or a copy."""

    method: MaskedAutoencoding
    training: Training
    loop: Loop[SceneBatch, Part]

    @classmethod
    def of(cls, case: Case, world: World, *, is_sharded: bool = True, **settings: Any) -> "Each":
        """What has not begun."""
        method = case.build()
        if is_sharded:
            world.shard(method.model)
        return cls(method, case.training(method, **settings), case.loop(method, world, **settings))

    def steps(self, last: int = STEPS) -> Iterator[Report]:
        """Go on to a step."""
        world = self.loop.world
        rest = list(batches(world))[self.training.step : last]
        return self.loop.steps(self.training, rest, lambda: {"said": world.rank + 1})

    def go_to(self, step: int) -> "Each":
        """Go on to a step, and stop there."""
        assert len(list(self.steps(step))) > 0
        return self

    def resume(self, path: Path) -> "Each":
        """Take up where a checkpoint was made."""
        found = load_checkpoint(path)
        self.training.restore(found.tensors, step=found.step)
        return self

    def save(self, folder: Path) -> Path:
        """Make a checkpoint of it, as runs do; it is there for all."""
        with Saver(folder, SavingConfig(), self.loop.world, {}) as saver:
            saver.save(self.training)
        dist.barrier()
        return folder / f"step-{self.training.step:08d}"

    def bytes(self) -> dict[str, int]:
        """Return what lies in this process, with all that is kept in memory for it."""
        state = self.training.optimiser.state
        parts = {
            "weights": [*self.method.model.parameters()],
            "moments": [each[key] for each in state.values() for key in ("exp_avg", "exp_avg_sq")],
            "average": [*(self.training.average or {}).values()],
        }
        return {
            name: sum(own_part(tensor).untyped_storage().nbytes() for tensor in tensors)
            for name, tensors in parts.items()
        }


def run_both_ways(world: World) -> dict[str, Any]:
    """Take the steps of every case, weights shared out and copied."""
    found: dict[str, Any] = {}
    for name, (case, settings) in RUNS.items():
        for way in ("sharded", "copied"):
            each = Each.of(case, world, is_sharded=way == "sharded", **settings)
            reports, tensors = list[dict[str, Any]](), dict[int, dict[str, Tensor]]()
            for report in each.steps():
                reports.append(vars(report))
                if report.step in KEPT:
                    tensors[report.step] = {name: tensor.clone() for name, tensor in each.training.tensors().items()}
            found[f"{name} {way}"] = reports, tensors
    return found


def hand_on(world: World, folder: Path) -> None:
    """Take two steps with copies, two with parts, and one with copies again."""
    copied = Each.of(WIDE, world, is_sharded=False).go_to(2).save(folder)
    sharded = Each.of(WIDE, world).resume(copied).go_to(4).save(folder)
    Each.of(WIDE, world, is_sharded=False).resume(sharded).go_to(STEPS).save(folder)


def stop_and_go_on(world: World, folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Stop after two steps and go on; what lies in this process, without a stop and after one."""
    whole = Each.of(SINGLE, world).go_to(STEPS)
    whole.save(folder / "whole")
    stopped = Each.of(SINGLE, world).go_to(2).save(folder / "stopped")
    resumed = Each.of(SINGLE, world).resume(stopped)
    found = whole.bytes(), resumed.bytes()
    resumed.go_to(STEPS).save(folder / "stopped")
    return found


def look_on_the_way(world: World, folder: Path) -> list[Tensor]:
    """Let the first process predict before the first step and after every other, oftener and oftener."""
    each, pictures = Each.of(SINGLE, world), []
    for step in range(STEPS + 1):
        if step:
            each.go_to(step)
        if step % 2 == 0:
            with whole(each.method.model):
                pictures += [look(each.method) for _ in range(step + 1) if world.is_first]
    each.save(folder)
    return pictures


def look(method: MaskedAutoencoding) -> Tensor:
    """Predict what is hidden of some photos."""
    scenes = noise_scenes(2, SIZE, seed=9)
    masks = method.hide(scenes, progress=1.0, generator=torch.Generator().manual_seed(0))
    return method.predict(scenes, masks).maps["rgb"]


def spoil(world: World, folder: Path) -> tuple[bool, bool]:
    """Return whether weights are taken for numbers, before and after one of them, of the second process, is none."""
    each = Each.of(SINGLE, world)
    before = is_finite(each.method.model)
    if not world.is_first:
        own_part(next(each.method.model.parameters()).detach()).fill_(torch.nan)
    each.save(folder)
    return before, is_finite(each.method.model)


def run(rank: int, folder: Path) -> None:
    """Do all that as one of two processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timeout)
    world = World(rank, WORLD)
    model = Each.of(WIDE, world).method.model
    hand_on(world, folder / "handed on")
    found = {
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "runs": run_both_ways(world),
        "bytes": stop_and_go_on(world, folder),
        "pictures": look_on_the_way(world, folder / "looked"),
        "is finite": spoil(world, folder / "spoilt"),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
