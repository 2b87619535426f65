"""Training of two-branch methods on a few scenes: losses fall below trivial solutions, and features still differ."""

from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.config.data import DataConfig
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.data import open_scenes
from c2fmae.methods import METHODS
from c2fmae.methods.branches.method import BranchMethod
from tests.methods.tiny_branches import BATCH, SINGLE, TINY, make_method, standardise_in_float64

STEPS = 150
LR = {"cmae": 1e-3, "mst": 1e-3, "conmim": 2e-3}
MOMENTUM = "momentum=0.9"
CHANGES = {
    "simclr": [],
    "dino": ["momentum=0.99", "teacher_temperature=0.04"],
    "ibot": [MOMENTUM, "teacher_temperature=0.04", "patch_teacher_temperature=0.04", "mask_chance=1"],
    "attmask": [MOMENTUM, "teacher_temperature=0.04", "patch_teacher_temperature=0.04", "mask_chance=1"],
    "mst": [MOMENTUM, "teacher_temperature=0.04"],
    "cmae": [MOMENTUM, "views.target.shift=4"],
    "conmim": [MOMENTUM, "group=8", "temperature=0.5"],
}
TRIVIAL = {
    "simclr": {"contrast": log(2 * BATCH - 1)},
    "moco-v1": {"contrast": log(1 + 16)},
    "moco-v3": {"contrast": 2 * 2 * 0.2 * log(BATCH)},
    "dino": {"image": log(16)},
    "ibot": {"image": log(16), "patch": log(16)},
    "attmask": {"image": log(16), "patch": log(16)},
    "mst": {"image": log(16), "rgb": 0.805},
    "cmae": {"contrast": 2 * 0.07 * log(BATCH), "rgb": 1.0},
    "lut": {"context": 2.0, "rgb": 1.0},
    "conmim": {"contrast": log(16)},
}
"""The losses of equal outputs for all candidates or prototypes, or of the mean of all pixels."""
QUICK = ("moco-v3",)


def draw_batches(method: BranchMethod, number: int) -> list[SceneBatch]:
    """Return different views of the same scenes."""
    scenes = open_scenes("generated", size=48, length=BATCH, difficulty="plain")
    view = method.training_view(DataConfig(scale=(0.6, 1.0)), (32, 32))
    draws = (np.random.default_rng(number) for number in range(number))
    return [SceneBatch.stack([view(scenes[index], rng) for index in range(BATCH)]) for rng in draws]


@pytest.fixture(autouse=True)
def float64_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in double precision: rounding on another CPU then changes little in 150 steps."""
    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise_in_float64)


def train(name: str) -> tuple[dict[str, float], Tensor]:
    """Return the losses at the end, and the features of different scenes."""
    preset = METHODS.get(name)()
    no_colours = ["colour=null", *(f"views.{view}.colour=null" for view in preset.views)]
    changes = [*CHANGES.get(name, [MOMENTUM]), *no_colours]
    method = make_method(name, *changes)
    config = TrainingConfig(
        steps=STEPS, warmup_steps=10, batch_size=BATCH, lr=LR.get(name, 5e-4), precision="fp32", clip=1.0
    )
    plan = plan_training(config, num_samples=BATCH, world_size=1)
    loop = TrainingLoop(method.build_task(plan, seed=0), config, plan, SINGLE)
    batches = draw_batches(method, 10)
    stream = (batches[step % 10] for step in range(STEPS))
    reports = list(loop.run(TrainingState.create(method.model, config, method.teacher), stream))[-10:]
    losses = {
        loss: sum(report.values.get(f"loss/{loss}", report.values["loss"]) for report in reports) / len(reports)
        for loss in TRIVIAL[name]
    }
    with torch.no_grad():
        images = batches[0].maps["rgb"].double() / 127.5 - 1
        tokens = method.model.encode(images)
    return losses, tokens[:, 0] if method.reads_class_token else tokens[:, 1:].mean(dim=1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TRIVIAL]
)
def test_losses_fall_below_trivial_solutions_without_collapse(name: str) -> None:
    losses, features = train(name)
    for loss, trivial in TRIVIAL[name].items():
        assert losses[loss] < trivial, loss
    assert F.normalize(features, dim=1).std(dim=0).mean() > 0.3 / features.shape[1] ** 0.5


def test_the_law_is_for_every_method() -> None:
    assert set(TRIVIAL) == set(TINY)
