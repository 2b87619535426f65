"""Batches that data workers mask: the same bits for any number of workers and ranks, and readable errors."""

import dataclasses
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import pytest
import torch
from torch import Tensor

from c2fmae.config.data import DataConfig
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.core.training import TrainingConfig, TrainingPlan, plan_training
from c2fmae.data import Scenes, open_scenes
from c2fmae.masking import RowGenerator
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.batch_masker import MaskedScenes
from c2fmae.methods.masked.task import PretrainingTask
from c2fmae.pretrain import prepare_batch
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, slice_scenes

pytestmark = pytest.mark.numeric

SEED, BATCH, STEPS = 3, 4, 5


def make_method(*overrides: str) -> MaskedAutoencoding:
    return build_tiny_method("c2fmae", "channels={semantic: 23}", "num_visible=3", *overrides)


def make_plan(world_size: int = 1, micro_batch: int = 2) -> TrainingPlan:
    config = TrainingConfig(steps=STEPS, lr=1e-3, batch_size=BATCH, micro_batch=micro_batch)
    return plan_training(config, num_samples=2 * BATCH, world_size=world_size)


def generated() -> Scenes:
    return open_scenes("generated", size=32, length=2 * BATCH)


def load(
    method: MaskedAutoencoding, *, workers: int = 0, world: World | None = None, first_step: int = 0, repeats: int = 1
) -> Iterator[list[MaskedScenes]]:
    """Yield the batches of a rank as pre-training loads them, from a step to the end of the second epoch."""
    world = world or World()
    plan = make_plan(world.size)
    data = DataConfig(workers=workers, repeats=repeats)
    return data.stream_training_batches(
        generated(),
        data.build_training_view(**method.view_options),
        plan,
        first_step,
        seed=SEED,
        rank=world.rank,
        finish=partial(prepare_batch, PretrainingTask(method, SEED).preparer, plan, world),
        pin_memory=False,
    )


def list_tensors(batches: Sequence[Sequence[MaskedScenes]]) -> list[Tensor]:
    """Return all tensors of batches."""
    tensors = []
    for part in (part for batch in batches for part in batch):
        assert part.masks.members is not None
        lists = [tensor for members in part.masks.members for tensor in members]
        tensors += [*part.scenes.maps.values(), part.masks.is_masked, part.masks.visible_idx, *lists, part.counts]
    return tensors


def assert_equal(batches: Sequence[Sequence[MaskedScenes]], expected: Sequence[Sequence[MaskedScenes]]) -> None:
    assert [part.scenes.keys for batch in batches for part in batch] == [
        part.scenes.keys for batch in expected for part in batch
    ]
    assert all(map(torch.equal, list_tensors(batches), list_tensors(expected)))
    assert len(list_tensors(batches)) == len(list_tensors(expected))


@pytest.mark.parametrize(("workers", "world"), [(1, World()), (3, World()), (3, World(1, 2))])
def test_masked_batches_do_not_depend_on_workers_or_the_first_step(workers: int, world: World) -> None:
    method = make_method()
    expected = list(islice(load(method, world=world), 4))
    assert_equal(list(islice(load(method, workers=workers, world=world, first_step=1), 3)), expected[1:])


@pytest.mark.parametrize("repeats", [1, 2])
def test_masked_batches_of_ranks_and_micro_batches_are_those_of_one_batch(repeats: int) -> None:
    method = make_method()
    single, first, second = (
        list(islice(load(method, world=world, repeats=repeats), 3)) for world in (World(), World(0, 2), World(1, 2))
    )
    for step, (batch, *of_ranks) in enumerate(zip(single, first, second, strict=True)):
        masks = method.masking.sample(
            dataclasses.replace(batch[0].scenes, keys=tuple("abcd"), maps=join_maps(batch)),
            progress=step / STEPS,
            generator=method.masking.seed_step(SEED, step),
        )
        for parts in (batch, [part for rank in of_ranks for part in rank]):
            assert torch.equal(torch.cat([part.masks.is_masked for part in parts]), masks.is_masked)
            assert torch.equal(torch.cat([part.masks.visible_idx for part in parts]), masks.visible_idx)
        counts = [torch.stack([part.counts for part in parts]) for parts in (batch, [*of_ranks[0], *of_ranks[1]])]
        assert torch.equal(counts[0].sum(dim=0), counts[1].sum(dim=0))
    assert not torch.equal(single[0][0].masks.is_masked, single[1][0].masks.is_masked)


@pytest.mark.parametrize("mask_noise", ["rows", "batch"])
def test_masks_of_a_step_are_drawn_as_the_method_sets(mask_noise: str) -> None:
    method, scenes = make_method(f"mask_noise={mask_noise}"), draw_noise_scenes(BATCH)
    seed = derive_seed(SEED, "masks", 2)
    generator = RowGenerator(seed) if mask_noise == "rows" else torch.Generator().manual_seed(seed)
    expected = method.sample_masks(scenes, progress=0.1, generator=generator)
    masker = PretrainingTask(method, SEED).preparer
    for rank in range(2):
        half = slice_scenes(scenes, 2 * rank, 2 * rank + 2)
        (part,) = masker.prepare(half, num_micro_batches=1, step=2, progress=0.1, world=World(rank, 2))
        assert torch.equal(part.masks.is_masked, expected.is_masked[2 * rank : 2 * rank + 2])


def join_maps(batch: Sequence[MaskedScenes]) -> dict[str, Tensor]:
    return {name: torch.cat([part.scenes.maps[name] for part in batch]) for name in batch[0].scenes.maps}


def test_masked_scenes_are_those_of_the_task_and_keep_their_tensors_when_moved() -> None:
    method, scenes = make_method(), draw_noise_scenes(BATCH)
    task = PretrainingTask(method, SEED)
    options = {"num_micro_batches": 2, "step": 4, "progress": 0.3, "world": World()}
    masked = task.preparer.prepare(scenes, **options)  # type: ignore[arg-type]
    moved = [part.to("cpu") for part in masked]
    assert_equal([moved], [masked])
    parts = task.split(masked, **options)  # type: ignore[arg-type]
    for ours, theirs in zip(parts, task.split(scenes, **options), strict=True):  # type: ignore[arg-type]
        assert ours.keys == theirs.keys
        assert all(torch.equal(ours.maps[name], theirs.maps[name]) for name in theirs.maps)
        assert torch.equal(ours.masks.is_masked, theirs.masks.is_masked)
        counts = task.compute_counts(ours)
        assert counts == task.compute_counts(theirs)
        assert {name: counts[name] for name in method.objectives} == method.loss_counts(ours.maps, ours.masks)


def test_a_masker_is_sent_to_workers_without_the_model() -> None:
    method = make_method()
    masker = PretrainingTask(method, SEED).preparer
    text = pickle.dumps(masker)
    assert len(text) < 20_000 < sum(4 * parameter.numel() for parameter in method.model.parameters())
    assert b"torch.nn" not in text
    again = pickle.loads(text)
    scenes = draw_noise_scenes(BATCH)
    both = [each.prepare(scenes, num_micro_batches=1, step=0, progress=0.0, world=World()) for each in (masker, again)]
    assert_equal([both[0]], [both[1]])


def test_the_number_of_storages_sent_by_workers_does_not_depend_on_micro_batches() -> None:
    """Each needs an open file for as long as it is prefetched."""
    masker, scenes = PretrainingTask(make_method(), SEED).preparer, draw_noise_scenes(BATCH)
    for num_micro_batches in (1, 2, BATCH):
        parts = masker.prepare(scenes, num_micro_batches=num_micro_batches, step=0, progress=0.0, world=World())
        storages = {tensor.untyped_storage().data_ptr() for tensor in list_tensors([parts])}
        assert len(storages) == len(scenes.maps) + 3  # hidden and visible patches, and all lists and counts
        assert all(tensor.is_contiguous() for tensor in list_tensors([parts]))  # or a GPU would wait for the copy


def test_maps_that_only_guide_masks_are_not_sent_to_the_model() -> None:
    method = build_tiny_method("mae", "masking.name=semantic")
    (part,) = PretrainingTask(method, SEED).preparer.prepare(
        draw_noise_scenes(BATCH), num_micro_batches=1, step=0, progress=0.0, world=World()
    )
    assert list(part.scenes.maps) == ["rgb"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["channels={semantic: 5}"],
            "00000004: expected semantic ids from 0 to 4, or 255 where unlabelled, got 20. Set channels.semantic to ",
        ),
        (["granularities=[depth, rgb]", "masking.name=random"], "depth: the scenes have no such map (got semantic,"),
    ],
)
def test_errors_of_workers_are_readable(overrides: list[str], message: str) -> None:
    method = make_method(*overrides)
    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            list(load(method, workers=workers))
        assert message in str(caught.value)


def test_exact_lists_give_the_tokens_of_fixed_lists() -> None:
    method = make_method()
    (part,) = PretrainingTask(method, SEED).split(
        draw_noise_scenes(BATCH), num_micro_batches=1, step=0, progress=0.0, world=World()
    )
    masks = part.masks
    fixed = dataclasses.replace(masks, members=masks.list_members(is_exact=False))
    embed = method.model.get_submodule("embeddings")
    torch.testing.assert_close(embed(part.maps, masks), embed(part.maps, fixed))
