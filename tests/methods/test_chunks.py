"""Chunks of a batch: the same results as at once, with fewer stored activations."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from c2fmae.config.contrastive import SimCLRConfig
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.methods.branches import chunks
from c2fmae.methods.branches.simclr import SimCLR
from c2fmae.methods.branches.task import BranchTask
from tests.methods.tiny_branches import (
    BATCH,
    COMPARE_IMAGES,
    SINGLE,
    TINY,
    draw_scenes,
    make_method,
    standardise_in_float64,
)


@pytest.fixture(autouse=True)
def _float64_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise_in_float64)


def make_task(name: str, *overrides: str, micro_batch: int | None = 2) -> BranchTask:
    config = TrainingConfig(steps=4, batch_size=BATCH, micro_batch=micro_batch, lr=1e-3)
    return make_method(name, *overrides).build_task(plan_training(config, num_samples=16, world_size=1), seed=0)


def compute_gradients(task: BranchTask) -> dict[str, Tensor]:
    """Return the gradients of the first step, in which random numbers depend on a seed."""
    torch.manual_seed(0)
    model = task.method.model.train()
    scenes = draw_scenes(task.method)
    (part,) = task.split(scenes, num_micro_batches=task.plan.num_micro_batches, step=0, progress=0.0, world=SINGLE)
    task.compute_losses(model, part, {}).total.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", COMPARE_IMAGES)
def test_random_numbers_are_the_same_in_the_second_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = compute_gradients(make_task(name, "encoder.drop_path=0.5"))
    monkeypatch.setattr(chunks, "checkpoint", lambda function, *inputs, use_reentrant: function(*inputs))
    expected = compute_gradients(make_task(name, "encoder.drop_path=0.5"))
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("simclr", ["encoder.depth=6"]),
        ("cmae", ["encoder.depth=6"]),
        ("cmae", ["decoder.options.depth=8", "feature_decoder.options.depth=8"]),
    ],
    ids=["encoder", "visible", "decoders"],
)
def test_activations_of_chunks_are_not_stored(name: str, overrides: list[str]) -> None:
    def count_stored_numbers(micro_batch: int | None) -> int:
        stored: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            stored[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            compute_gradients(make_task(name, *overrides, micro_batch=micro_batch))
        return sum(stored.values())

    assert count_stored_numbers(2) < 0.5 * count_stored_numbers(None)


def test_the_model_is_as_before_after_a_step() -> None:
    task = make_task("cmae")
    modules = [*task.method.model.modules()]
    before = [{*vars(module)} for module in modules]
    compute_gradients(task)
    assert [{*vars(module)} for module in modules] == before
    encoder = task.method.model.encoder

    def fail_in_chunks() -> None:
        with chunks.compute_in_chunks(task.method.model, 2):
            assert "forward" in vars(encoder)
            raise RuntimeError("in the loss")

    with pytest.raises(RuntimeError, match="in the loss"):
        fail_in_chunks()
    assert "forward" not in vars(encoder)


def test_losses_of_both_sides_and_batch_norms_need_all_images_of_a_process() -> None:
    class Plain(SimCLR):
        @classmethod
        def create_heads(cls, config: SimCLRConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
            return {"projector": nn.Linear(dim, config.out)}

    assert Plain.build(make_method("simclr").config, seed=0).compares_images
    assert [name for name in TINY if make_method(name).compares_images] == [*COMPARE_IMAGES]
    assert make_method("lut", "head_norm=batch").compares_images


def test_only_compared_images_are_in_one_batch() -> None:
    for name, size in (("simclr", BATCH), ("moco-v1", 2)):
        task = make_task(name)
        parts: Any = task.preparer.prepare(
            draw_scenes(task.method), num_micro_batches=4, step=0, progress=0.0, world=SINGLE
        )
        assert {len(part) for part in parts} == {size}
