"""Laws of two-branch methods, for each of the registered ones, and what is particular to one of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods import METHODS, Method, MethodTask, build_method
from c2fmae.methods.branches.cmae import CMAE
from c2fmae.methods.branches.dino import Dino
from c2fmae.methods.branches.method import BranchMethod
from c2fmae.methods.masked.model_inputs import standardise_maps

ENCODER = ["encoder.name=test_vit", "encoder.patch_size=8", "encoder.depth=2", "image_size=[32, 32]"]
LOCAL = ["views.local.size=[16, 16]", "views.local.count=2", "hidden=16", "bottleneck=8", "prototypes=16"]
DECODERS = [
    f"{decoder}.options.{option}"
    for decoder in ("decoder", "feature_decoder")
    for option in ("dim=32", "num_heads=4", "depth=1")
]
TINY = {
    "simclr": ["hidden=16", "out=8"],
    "moco-v1": ["queue_length=16", "out=8"],
    "moco-v3": ["hidden=16", "out=8"],
    "dino": [*LOCAL, "held_epochs=0"],
    "ibot": [*LOCAL, "held_epochs=0", "mask_chance=0.9"],
    "cmae": ["hidden=16", "out=8", *DECODERS],
}
NEED_WHOLE_BATCHES = ("simclr", "moco-v3", "cmae")
BATCH = 8
PLAN = plan_training(TrainingConfig(steps=4, batch_size=BATCH, lr=1e-3), num_samples=16, world_size=1)


def make_method(name: str, *overrides: str) -> BranchMethod:
    method = build_method(METHODS.get(name)().override([*ENCODER, *TINY[name], *overrides]), seed=0)
    assert isinstance(method, BranchMethod)
    method.model.double()
    if method.teacher is not None:
        method.teacher.double()
    return method


def draw_scenes(method: BranchMethod, seed: int = 0) -> SceneBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    config = method.config
    sizes = {name: (view.count, 3, *(view.size or config.image_size)) for name, view in config.views.items()}
    views = {name: draw(BATCH, *size) for name, size in sizes.items()}
    keys = tuple(f"image {index}" for index in range(BATCH))
    return SceneBatch(keys, {"rgb": draw(BATCH, 3, *config.image_size)}, (), views)


@dataclass(frozen=True)
class Run:
    """A training that can be stopped and restored."""

    method: BranchMethod
    loop: TrainingLoop[Any, Any]
    training: TrainingState

    @classmethod
    def start(cls, name: str, *, micro_batch: int | None = None) -> "Run":
        method = make_method(name)
        config = TrainingConfig(
            steps=4, batch_size=BATCH, micro_batch=micro_batch, lr=1e-3, precision="fp32", weight_decay=0.1
        )
        plan = plan_training(config, num_samples=16, world_size=1)
        loop = TrainingLoop(method.build_task(plan, seed=0), config, plan, World())
        return cls(method, loop, TrainingState.create(method.model, config, method.teacher))

    def train(self) -> list[float]:
        """Run the remaining steps, each on images of its own, and return their losses."""
        batches = (draw_scenes(self.method, step) for step in range(self.training.step, 4))
        return [report.values["loss"] for report in self.loop.run(self.training, batches)]


def assert_all_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-9, msg=name)


@pytest.fixture(autouse=True)
def _float64_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let images be standardised in double precision."""

    def standardise(maps: Mapping[str, Tensor], mean_and_std: Any) -> dict[str, Tensor]:
        return {name: images.double() for name, images in standardise_maps(maps, mean_and_std).items()}

    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise)


@pytest.mark.parametrize("name", [name for name in TINY if name not in NEED_WHOLE_BATCHES])
def test_micro_batches_add_up_to_the_batch(name: str) -> None:
    whole, parts = Run.start(name), Run.start(name, micro_batch=2)
    torch.testing.assert_close(torch.tensor(parts.train()), torch.tensor(whole.train()), rtol=0, atol=1e-9)
    assert_all_close(parts.training.named_tensors(), whole.training.named_tensors())


@pytest.mark.parametrize("name", NEED_WHOLE_BATCHES)
def test_methods_that_compare_images_refuse_micro_batches(name: str) -> None:
    with pytest.raises(UserError, match=r"training\.micro_batch: .*Set micro_batch to null"):
        Run.start(name, micro_batch=2)


@pytest.mark.parametrize("name", TINY)
def test_a_restored_run_ends_in_the_same_bits(name: str) -> None:
    whole, stopped = Run.start(name), Run.start(name)
    whole.train()
    batches = (draw_scenes(stopped.method, step) for step in range(2))
    list(stopped.loop.run(stopped.training, batches))
    saved = {key: tensor.clone() for key, tensor in stopped.training.named_tensors().items()}
    restored = Run.start(name)
    restored.training.restore(saved, step=2)
    restored.train()
    final = whole.training.named_tensors()
    assert all(torch.equal(tensor, final[key]) for key, tensor in restored.training.named_tensors().items())


@pytest.mark.parametrize("name", TINY)
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    method = make_method(name)
    task = method.build_task(PLAN, seed=0)
    (part,) = task.split(draw_scenes(method), num_micro_batches=1, step=1, progress=0.25, world=World())
    task.compute_losses(method.model, part, {}).total.backward()
    missing = [key for key, value in method.model.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []
    assert method.teacher is None or all(value.grad is None for value in method.teacher.parameters())


@pytest.mark.parametrize("name", TINY)
def test_a_method_has_the_protocol_and_describes_itself(name: str) -> None:
    config = METHODS.get(name)().override([*ENCODER, *TINY[name]])
    with torch.device("meta"):
        method = build_method(config)
    assert isinstance(method, Method)
    assert isinstance(method.build_task(PLAN, seed=0), MethodTask)
    text, cost = method.describe(), method.compute_cost()
    assert all(key in text for key in ("student", *method.loss_weights, "GFLOP"))
    assert cost.flops > 0
    assert (cost.teacher_flops > 0) == (method.teacher is not None)
    assert type(config).from_dict(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", TINY)
def test_held_out_losses_are_sums_over_images(name: str) -> None:
    method = make_method(name)
    method.model.eval()
    with torch.no_grad():
        sums = method.sum_held_out_losses(draw_scenes(method), seed=3)
        again = method.sum_held_out_losses(draw_scenes(method), seed=3)
    assert sums.keys() == method.loss_weights.keys()
    assert all(count.item() == BATCH and total.isfinite() for total, count in sums.values())
    assert all(torch.equal(again[key][0], total) for key, (total, _) in sums.items())


def test_the_prototypes_are_held_in_the_first_epochs() -> None:
    method = make_method("dino", "held_epochs=1")
    task = method.build_task(PLAN, seed=0)
    (held,) = task.held_parameters(1)
    assert held is method.model.get_parameter("heads.prototypes.prototypes.weight")
    assert list(task.held_parameters(2)) == []


def test_hidden_patches_of_ibot_do_not_reach_the_student() -> None:
    method = make_method("ibot")
    (part,) = method.build_task(PLAN, seed=0).split(
        draw_scenes(method), num_micro_batches=1, step=0, progress=0.0, world=World()
    )
    is_masked = part.masks["main"]
    assert is_masked.any()
    pixels = is_masked.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = part.images("main")
    changed = torch.where(pixels.unsqueeze(1), images + 1, images)
    with torch.no_grad():
        outputs = [method.model.compute_latents(each, is_masked=is_masked) for each in (images, changed)]
        assert torch.equal(*outputs)
        assert not torch.equal(method.model.encode(images), method.model.encode(changed))


def test_cmae_shows_whole_units() -> None:
    config = METHODS.get("cmae")()
    is_masked = CMAE.draw_masks(config, (14, 14), range(3, 8), RowGenerator(5))["main"]
    assert (~is_masked).sum(dim=1).tolist() == [68] * 5
    units = is_masked.unflatten(1, (7, 2, 7, 2))
    assert torch.equal(units.any(dim=4).any(dim=2), units.all(dim=4).all(dim=2))
    whole = CMAE.draw_masks(config, (14, 14), range(8), RowGenerator(5))["main"]
    assert torch.equal(whole[3:], is_masked)


def test_the_queue_holds_the_keys_of_the_last_steps() -> None:
    run = Run.start("moco-v1")
    before = run.method.model.get_buffer("heads.queue.keys").clone()
    run.train()
    queue = run.method.model.get_buffer("heads.queue.keys")
    assert not (queue == before).all(dim=1).any()
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(16, dtype=queue.dtype))
    with pytest.raises(UserError, match=r"method\.queue_length: expected a multiple of the batch of 8, got 12"):
        make_method("moco-v1", "queue_length=12").build_task(run.loop.plan, seed=0)


def test_views_that_a_method_does_not_read_are_rejected() -> None:
    for override, text in (
        ("views={}", r"views\.second: simclr reads this view, but it is missing"),
        ("views.third={}", r"views\.third: simclr does not read this view. Its views: second"),
        ("granularities=[semantic, rgb]", r"granularities: simclr compares images"),
    ):
        with pytest.raises(UserError, match=text):
            METHODS.get("simclr")().override([override])


def test_the_centre_moves_towards_the_mean_of_the_teachers_logits() -> None:
    run = Run.start("dino")
    assert isinstance(run.method, Dino)
    scenes: Iterator[SceneBatch] = repeat(draw_scenes(run.method), 1)
    (part,) = run.method.build_task(run.loop.plan, seed=0).split(
        draw_scenes(run.method), num_micro_batches=1, step=0, progress=0.0, world=World()
    )
    logits = run.method.compute_teacher_logits(part.targets["image"])
    list(run.loop.run(run.training, scenes))
    centre = run.method.model.get_buffer("heads.image_centre.value")
    torch.testing.assert_close(centre, 0.1 * logits.mean(dim=(0, 1)))
