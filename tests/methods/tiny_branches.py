"""Tiny two-branch methods, and runs of them in double precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.methods import METHODS, build_method
from c2fmae.methods.branches.method import BranchMethod
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.methods.masked.model_inputs import standardise_maps

ENCODER = ["encoder.name=test_vit", "encoder.patch_size=8", "encoder.depth=2", "image_size=[32, 32]"]
LOCAL = ["views.local.size=[16, 16]", "views.local.count=2", "hidden=16", "bottleneck=8", "prototypes=16"]
DECODERS = [
    f"{decoder}.options.{option}"
    for decoder in ("decoder", "feature_decoder")
    for option in ("dim=32", "num_heads=4", "depth=1")
]
LAYER_SCALES = ["encoder.name=deit3_base_patch16_224", "encoder.dim=64", "encoder.num_heads=2"]
TINY = {
    "simclr": ["hidden=16", "out=8"],
    "moco-v1": ["queue_length=16", "out=8"],
    "moco-v3": ["hidden=16", "out=8"],
    "dino": [*LOCAL, "held_epochs=0"],
    "ibot": [*LOCAL, "held_epochs=0", "mask_chance=0.9"],
    "attmask": [*LOCAL, "held_epochs=0", "mask_chance=0.9", "hint_fraction=0.5"],
    "mst": [*LOCAL, "held_epochs=0", "restorer_width=8"],
    "cmae": ["hidden=16", "out=8", *DECODERS],
    "lut": ["hidden=16", *DECODERS[:3]],
    "conmim": [*LAYER_SCALES, "hidden=16", "out=8", "group=2"],
}
COMPARE_IMAGES = ("simclr", "moco-v3", "cmae")
"""Methods that compute a batch in chunks instead of micro-batches."""
WITHOUT_TEACHER = ("simclr",)
BATCH = 8
SINGLE = World()
PLAN = plan_training(TrainingConfig(steps=4, batch_size=BATCH, lr=1e-3), num_samples=16, world_size=1)


def make_method(name: str, *overrides: str) -> BranchMethod:
    """Return a tiny method in double precision."""
    method = build_method(METHODS.get(name)().override([*ENCODER, *TINY[name], *overrides]), seed=0)
    assert isinstance(method, BranchMethod)
    method.model.double()
    if method.teacher is not None:
        method.teacher.double()
    return method


def draw_scenes(method: BranchMethod, seed: int = 0, world: World = SINGLE) -> SceneBatch:
    """Return the images of a rank in a batch of noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    config = method.config
    sizes = {name: (view.count, 3, *(view.size or config.image_size)) for name, view in config.views.items()}
    views = {name: draw(BATCH, *size) for name, size in sizes.items()}
    keys = tuple(f"image {index}" for index in range(BATCH))
    batch = SceneBatch(keys, {"rgb": draw(BATCH, 3, *config.image_size)}, (None,) * BATCH, views)
    size = BATCH // world.size
    return batch.slice_scenes(world.rank * size, (world.rank + 1) * size)


def split_batch(method: BranchMethod, step: int = 1, scenes: SceneBatch | None = None) -> ViewBatch:
    """Return a batch as a step gets it, with the outputs of the teacher."""
    task = method.build_task(PLAN, seed=0)
    batch = draw_scenes(method) if scenes is None else scenes
    (part,) = task.split(batch, num_micro_batches=1, step=step, progress=0.25, world=SINGLE)
    return part


def perturb_teacher(method: BranchMethod) -> BranchModel:
    """Move the teacher away from the student, so that they cannot be mistaken for each other."""
    assert method.teacher is not None
    generator = torch.Generator().manual_seed(1)
    for parameter in method.teacher.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return method.teacher


@dataclass(frozen=True)
class Run:
    """A training that can be stopped and restored."""

    method: BranchMethod
    loop: TrainingLoop[Any, Any]
    training: TrainingState

    @classmethod
    def start(
        cls,
        name: str,
        *overrides: str,
        micro_batch: int | None = None,
        world: World = SINGLE,
        sharded: bool = False,
    ) -> "Run":
        """Start a run in double precision."""
        method = make_method(name, *overrides)
        config = TrainingConfig(
            steps=4,
            batch_size=BATCH,
            micro_batch=micro_batch,
            lr=1e-3,
            precision="fp32",
            weight_decay=0.1,
            sharded=sharded,
        )
        prepare_model(method.model, config, world)
        plan = plan_training(config, num_samples=16, world_size=world.size)
        loop = TrainingLoop(method.build_task(plan, seed=0), config, plan, world)
        return cls(method, loop, TrainingState.create(method.model, config, method.teacher))

    def train(self) -> list[float]:
        """Run the remaining steps, each on images of its own, and return their losses."""
        batches = (draw_scenes(self.method, step, self.loop.world) for step in range(self.training.step, 4))
        return [report.values["loss"] for report in self.loop.run(self.training, batches)]


def standardise_in_float64(maps: Mapping[str, Tensor], mean_and_std: Any) -> dict[str, Tensor]:
    """Standardise images in double precision, as the laws of these tests need it."""
    return {name: images.double() for name, images in standardise_maps(maps, mean_and_std).items()}
