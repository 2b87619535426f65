from dataclasses import dataclass, field
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
from c2fmae.methods.masked.held_out import SCENES_PER_BATCH, HeldOutEvaluator
from tests.methods.tiny_methods import NUM_CLASSES, build_tiny_method, draw_noise_scenes

pytestmark = pytest.mark.numeric

SIZE = (16, 16)
SMALL = ["encoder.dim=32", "encoder.depth=2", "encoder.num_heads=2", "encoder.patch_size=8", "decoder.options.dim=16"]
ALONE = World()


class Noise:
    """Scenes of noise; of every third no object is labelled, of some nothing. What is asked for is written down."""

    info = DatasetInfo(name="noise")

    def __init__(self, length: int) -> None:
        self.keys = [f"scene-{index}" for index in range(length)]
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        self.asked.append(index)
        maps = {name: tensor[0] for name, tensor in draw_noise_scenes(1, SIZE, stride=1, seed=index).maps.items()}
        if index % 3 == 0:
            maps["instance"].fill_(IGNORE)
        if index % 40 == 0:
            maps["semantic"].fill_(IGNORE)
        return Scene(self.keys[index], maps)

    def read_image_bytes(self, index: int) -> bytes | None:
        return None


def method(name: str = "c2fmae", *overrides: str) -> MaskedAutoencoding:
    return build_tiny_method(name, *SMALL, *overrides, size=SIZE)


def held_out(length: int, count: int, world: World = ALONE) -> HeldOutEvaluator:
    view = CentralView(size=SIZE, label_stride=4, max_instances=NUM_CLASSES["instance"])
    return HeldOutEvaluator(Noise(length), view, count, world)


def config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 1, "lr": 0.1, "batch_size": 4, "precision": "fp32", "seed": 5} | settings)


def by_hand(each: MaskedAutoencoding, places: list[int]) -> dict[str, float]:
    """The loss of one big batch of these scenes, in double precision; only masks come 32 scenes at a time."""
    view, scenes = held_out(1, 1).view, Noise(1000)
    parts = [places[first : first + 32] for first in range(0, len(places), 32)]
    samples = [[view(scenes[place], np.random.default_rng(0)) for place in part] for part in parts]
    masks = [
        each.sample_masks(
            SceneBatch.stack(part),
            progress=1.0,
            generator=torch.Generator().manual_seed(derive_seed(5, "held-out", number)),
        )
        for number, part in enumerate(samples)
    ]
    is_masked = torch.cat([mask.is_masked for mask in masks])
    whole = Masks.from_mask(is_masked, each.config.granularities, num_visible=masks[0].visible_idx.shape[1])
    maps = each.prepare_inputs(SceneBatch.stack([sample for part in samples for sample in part]))
    each.model.eval()
    with torch.no_grad():
        loss = each.compute_loss(each.model(maps, whole), maps, whole)
    parts_of = {f"held_out/{name}": value.item() for name, value in loss.terms.items()}
    return {"held_out/loss": loss.total.item(), **parts_of}


@pytest.mark.parametrize("average", ["samples", "cells"])
@pytest.mark.parametrize("name", ["c2fmae", "mae", "multimae"])
def test_the_losses_are_those_of_one_big_batch(name: str, average: str) -> None:
    each = method(name, f"loss_average={average}", "loss_weights={semantic: 2, rgb: 0.5}")
    found = held_out(70, 70).compute_losses(each, config())
    expected = by_hand(each, list(range(70)))
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "length", [1, SCENES_PER_BATCH - 1, SCENES_PER_BATCH, SCENES_PER_BATCH + 1, 2 * SCENES_PER_BATCH]
)
def test_batches_end_where_they_must(length: int) -> None:
    each = method()
    found = held_out(length, 1000)
    assert [len(batch) for batch in found.batches.values()] == [
        min(SCENES_PER_BATCH, length - first) for first in range(0, length, SCENES_PER_BATCH)
    ]
    assert found.compute_losses(each, config()) == pytest.approx(by_hand(each, list(range(length))), rel=1e-5)


@dataclass(frozen=True)
class Heard(World):
    """A process whose sums go to a list, and which takes for the sum over all what it is given."""

    sums: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.sums.append(tensor.clone())
        return tensor if self.total is None else self.total


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_processes_comes_to_the_same(size: int) -> None:
    each, sums = method(), list[Tensor]()
    for rank in range(size):  # with more processes than batches, some have none
        held_out(100, 100, Heard(rank, size, sums=sums)).compute_losses(each, config())
    total = torch.stack(sums).sum(dim=0)
    alone = held_out(100, 100).compute_losses(each, config())
    for rank in range(size):
        found = held_out(100, 100, Heard(rank, size, total=total)).compute_losses(each, config())
        assert found == pytest.approx(alone, rel=1e-12)


def test_processes_share_the_batches_out() -> None:
    shares = [held_out(100, 100, World(rank, 3)) for rank in range(3)]
    assert [list(share.batches) for share in shares] == [[0, 3], [1], [2]]
    keys = {number: batch.keys for share in shares for number, batch in share.batches.items()}
    assert [key for number in sorted(keys) for key in keys[number]] == [f"scene-{index}" for index in range(100)]
    for share in shares:  # and looks at no others
        assert isinstance(share.scenes, Noise)
        assert len(share.scenes.asked) == sum(map(len, share.batches.values()))


def test_it_comes_to_the_same_again_and_scenes_are_cut_once() -> None:
    each, found = method(), held_out(40, 40)
    first = found.compute_losses(each, config())
    torch.rand(3)
    before = torch.get_rng_state()
    assert found.compute_losses(each, config()) == first
    assert torch.equal(torch.get_rng_state(), before)
    scenes = found.scenes
    assert isinstance(scenes, Noise)
    assert scenes.asked == list(range(40))
    assert held_out(40, 40).compute_losses(each, config()) == first
    assert found.compute_losses(each, config(seed=6)) != first


@pytest.mark.parametrize(("length", "count"), [(100, 10), (100, 33), (7, 3), (7, 7), (7, 100)])
def test_scenes_are_spread_evenly(length: int, count: int) -> None:
    found = held_out(length, count)
    keys = [key for batch in found.batches.values() for key in batch.keys]
    places = [int(key.removeprefix("scene-")) for key in keys]
    number = min(count, length)
    assert places == [length * index // number for index in range(number)]


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_in_its_mode(is_training: bool) -> None:
    each = method("c2fmae", "encoder.drop_path=0.5")
    each.model.train(is_training)
    found = held_out(8, 8).compute_losses(each, config())
    assert {module.training for module in each.model.modules()} == {is_training}
    assert all(parameter.grad is None for parameter in each.model.parameters())
    assert found == pytest.approx(by_hand(each, list(range(8))), rel=1e-5)  # nothing was dropped


def test_precision_is_that_of_the_training() -> None:
    each, found = method(), held_out(8, 8)
    full, half = found.compute_losses(each, config()), found.compute_losses(each, config(precision="bf16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.05)


def test_what_nobody_labelled_has_no_loss() -> None:
    each = method()
    found = HeldOutEvaluator(Noise(1), held_out(1, 1).view, 1, ALONE).compute_losses(
        each, config()
    )  # of scene 0, only the photo
    assert found["held_out/semantic"] == found["held_out/instance"] == 0.0
    assert found["held_out/loss"] == found["held_out/rgb"] > 0
