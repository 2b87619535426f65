from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.granularity import IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.core.training import TrainingConfig
from c2fmae.data import CentralView, DatasetInfo
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.held_out import SCENES_PER_BATCH, HeldOutEvaluator
from tests.methods.tiny_methods import NUM_CLASSES, build_tiny_method, draw_noise_scenes

pytestmark = pytest.mark.numeric

SIZE = (16, 16)
SMALL = ["encoder.dim=32", "encoder.depth=2", "encoder.num_heads=2", "encoder.patch_size=8", "decoder.options.dim=16"]
SINGLE_PROCESS = World()


class NoiseScenes:
    """Noise scenes that record reads; every third has no labelled objects, every 40th no labels at all."""

    info = DatasetInfo(name="noise")

    def __init__(self, length: int) -> None:
        self.keys = [f"scene-{index}" for index in range(length)]
        self.read_indices: list[int] = []

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        self.read_indices.append(index)
        maps = {name: tensor[0] for name, tensor in draw_noise_scenes(1, SIZE, stride=1, seed=index).maps.items()}
        if index % 3 == 0:
            maps["instance"].fill_(IGNORE)
        if index % 40 == 0:
            maps["semantic"].fill_(IGNORE)
        return Scene(self.keys[index], maps)

    def read_image_bytes(self, index: int) -> bytes | None:
        return None


def build_small_method(name: str = "c2fmae", *overrides: str) -> MaskedAutoencoding:
    return build_tiny_method(name, *SMALL, *overrides, size=SIZE)


def make_evaluator(length: int, count: int, world: World = SINGLE_PROCESS) -> HeldOutEvaluator:
    view = CentralView(size=SIZE, label_stride=4, max_instances=NUM_CLASSES["instance"])
    return HeldOutEvaluator(NoiseScenes(length), view, count, world)


def make_training_config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 1, "lr": 0.1, "batch_size": 4, "precision": "fp32", "seed": 5} | settings)


def compute_reference_losses(method: MaskedAutoencoding, indices: list[int]) -> dict[str, float]:
    """Return the losses of these scenes as one batch, with masks drawn for 32 scenes at a time."""
    view, scenes = make_evaluator(1, 1).view, NoiseScenes(1000)
    index_batches = [indices[first : first + 32] for first in range(0, len(indices), 32)]
    samples = [[view(scenes[index], np.random.default_rng(0)) for index in batch] for batch in index_batches]
    masks = [
        method.sample_masks(
            SceneBatch.stack(batch),
            progress=1.0,
            generator=torch.Generator().manual_seed(derive_seed(5, "held-out", number)),
        )
        for number, batch in enumerate(samples)
    ]
    is_masked = torch.cat([mask.is_masked for mask in masks])
    all_masks = Masks.from_mask(is_masked, method.config.granularities, num_visible=masks[0].visible_idx.shape[1])
    maps = method.prepare_inputs(SceneBatch.stack([sample for batch in samples for sample in batch]))
    method.model.eval()
    with torch.no_grad():
        loss = method.compute_loss(method.model(maps, all_masks), maps, all_masks)
    terms = {f"held_out/{name}": value.item() for name, value in loss.terms.items()}
    return {"held_out/loss": loss.total.item(), **terms}


@pytest.mark.parametrize("average", ["samples", "cells"])
@pytest.mark.parametrize("name", ["c2fmae", "mae", "multimae"])
def test_losses_equal_those_of_one_large_batch(name: str, average: str) -> None:
    method = build_small_method(name, f"loss_average={average}", "loss_weights={semantic: 2, rgb: 0.5}")
    losses = make_evaluator(70, 70).compute_losses(method, make_training_config())
    expected = compute_reference_losses(method, list(range(70)))
    assert list(losses) == list(expected)
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "length", [1, SCENES_PER_BATCH - 1, SCENES_PER_BATCH, SCENES_PER_BATCH + 1, 2 * SCENES_PER_BATCH]
)
def test_the_last_batch_has_the_remaining_scenes(length: int) -> None:
    method, evaluator = build_small_method(), make_evaluator(length, 1000)
    assert [len(batch) for batch in evaluator.batches.values()] == [
        min(SCENES_PER_BATCH, length - first) for first in range(0, length, SCENES_PER_BATCH)
    ]
    expected = compute_reference_losses(method, list(range(length)))
    assert evaluator.compute_losses(method, make_training_config()) == pytest.approx(expected, rel=1e-5)


@dataclass(frozen=True)
class RecordingWorld(World):
    """A rank that records the tensors of `all_reduce`, and returns `total` from it if given."""

    sums: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.sums.append(tensor.clone())
        return tensor if self.total is None else self.total


@pytest.mark.parametrize("size", [2, 3, 5])
def test_losses_do_not_depend_on_the_number_of_processes(size: int) -> None:
    method, sums = build_small_method(), list[Tensor]()
    for rank in range(size):  # some ranks have no batch if there are more than batches
        make_evaluator(100, 100, RecordingWorld(rank, size, sums=sums)).compute_losses(method, make_training_config())
    total = torch.stack(sums).sum(dim=0)
    expected = make_evaluator(100, 100).compute_losses(method, make_training_config())
    for rank in range(size):
        losses = make_evaluator(100, 100, RecordingWorld(rank, size, total=total)).compute_losses(
            method, make_training_config()
        )
        assert losses == pytest.approx(expected, rel=1e-12)


def test_batches_are_distributed_over_ranks() -> None:
    evaluators = [make_evaluator(100, 100, World(rank, 3)) for rank in range(3)]
    assert [list(evaluator.batches) for evaluator in evaluators] == [[0, 3], [1], [2]]
    keys = {number: batch.keys for evaluator in evaluators for number, batch in evaluator.batches.items()}
    assert [key for number in sorted(keys) for key in keys[number]] == [f"scene-{index}" for index in range(100)]
    for evaluator in evaluators:  # reads only its own scenes
        assert isinstance(evaluator.scenes, NoiseScenes)
        assert len(evaluator.scenes.read_indices) == sum(map(len, evaluator.batches.values()))


def test_random_views_differ_between_scenes_and_not_between_numbers_of_processes() -> None:
    def draw_numbers(world: World) -> dict[int, list[float]]:
        evaluator = make_evaluator(100, 100, world)
        numbers = dict[str, float]()

        def record(scene: Scene, rng: np.random.Generator) -> Scene:
            numbers[scene.key] = rng.random()
            return scene

        batches = replace(evaluator, view=record).batches
        return {number: [numbers[key] for key in batch.keys] for number, batch in batches.items()}

    expected = draw_numbers(World())
    assert len({number for batch in expected.values() for number in batch}) == 100
    assert draw_numbers(World(0, 3)) | draw_numbers(World(1, 3)) | draw_numbers(World(2, 3)) == expected


def test_evaluations_are_repeatable_and_crop_scenes_once() -> None:
    method, evaluator = build_small_method(), make_evaluator(40, 40)
    first = evaluator.compute_losses(method, make_training_config())
    torch.rand(3)
    before = torch.get_rng_state()
    assert evaluator.compute_losses(method, make_training_config()) == first
    assert torch.equal(torch.get_rng_state(), before)
    scenes = evaluator.scenes
    assert isinstance(scenes, NoiseScenes)
    assert scenes.read_indices == list(range(40))
    assert make_evaluator(40, 40).compute_losses(method, make_training_config()) == first
    assert evaluator.compute_losses(method, make_training_config(seed=6)) != first


@pytest.mark.parametrize(("length", "count"), [(100, 10), (100, 33), (7, 3), (7, 7), (7, 100)])
def test_scenes_are_spread_evenly(length: int, count: int) -> None:
    evaluator = make_evaluator(length, count)
    keys = [key for batch in evaluator.batches.values() for key in batch.keys]
    indices = [int(key.removeprefix("scene-")) for key in keys]
    number = min(count, length)
    assert indices == [length * index // number for index in range(number)]


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_evaluated_in_eval_mode_and_its_mode_is_restored(is_training: bool) -> None:
    method = build_small_method("c2fmae", "encoder.drop_path=0.5")
    method.model.train(is_training)
    losses = make_evaluator(8, 8).compute_losses(method, make_training_config())
    assert {module.training for module in method.model.modules()} == {is_training}
    assert all(parameter.grad is None for parameter in method.model.parameters())
    assert losses == pytest.approx(compute_reference_losses(method, list(range(8))), rel=1e-5)  # without drop path


def test_losses_are_computed_in_the_precision_of_training() -> None:
    method, evaluator = build_small_method(), make_evaluator(8, 8)
    full, half = (evaluator.compute_losses(method, make_training_config(precision=name)) for name in ("fp32", "bf16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.05)


def test_unlabelled_maps_have_no_loss() -> None:
    method = build_small_method()
    losses = make_evaluator(1, 1).compute_losses(method, make_training_config())  # scene 0 has no labels
    assert losses["held_out/semantic"] == losses["held_out/instance"] == 0.0
    assert losses["held_out/loss"] == losses["held_out/rgb"] > 0
