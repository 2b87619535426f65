import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.loop import Task
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.masking import CURRICULA, RowGenerator
from c2fmae.methods.masked.objectives import count_hidden_values
from c2fmae.methods.masked.task import MicroBatch, PretrainingTask
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, slice_scenes

pytestmark = pytest.mark.numeric

SIZE, BATCH = (32, 32), 8
SMALL = ["encoder.dim=32", "encoder.depth=1", "encoder.num_heads=2", "encoder.patch_size=8", "decoder.options.dim=16"]


def make_task(name: str = "c2fmae", *overrides: str, seed: int = 3) -> PretrainingTask:
    return PretrainingTask(build_tiny_method(name, *SMALL, *overrides, size=SIZE), seed)


def draw_scenes() -> SceneBatch:
    """Return scenes, one of which has no objects, two no labelled objects, and one no labelled classes."""
    scenes = draw_noise_scenes(BATCH, SIZE)
    scenes.maps["instance"][1] = 0
    scenes.maps["instance"][2:4] = IGNORE
    scenes.maps["semantic"][4] = IGNORE
    return scenes


def split_batch(
    task: PretrainingTask, *, step: int = 5, progress: float = 0.4, world_size: int = 1, num_micro_batches: int = 1
) -> list[MicroBatch]:
    """Return the micro-batches of all ranks, in order."""
    rank_batch = BATCH // world_size
    return [
        micro_batch
        for rank in range(world_size)
        for micro_batch in task.split(
            slice_scenes(draw_scenes(), rank * rank_batch, (rank + 1) * rank_batch),
            num_micro_batches=num_micro_batches,
            step=step,
            progress=progress,
            world=World(rank, world_size),
        )
    ]


def sum_counts(counts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([count[name] for count in counts]).sum() for name in counts[0]}


def step_generator() -> RowGenerator:
    return RowGenerator(derive_seed(3, "masks", 5))


def test_the_task_implements_the_interface_of_the_loop() -> None:
    assert isinstance(make_task(), Task)


@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_masks_do_not_depend_on_ranks_and_micro_batches(world_size: int, num_micro_batches: int) -> None:
    task = make_task()
    micro_batches = split_batch(task, world_size=world_size, num_micro_batches=num_micro_batches)
    assert len(micro_batches) == world_size * num_micro_batches
    assert {len(micro_batch.keys) for micro_batch in micro_batches} == {BATCH // world_size // num_micro_batches}
    assert tuple(key for micro_batch in micro_batches for key in micro_batch.keys) == draw_scenes().keys
    masks = task.method.sample_masks(draw_scenes(), progress=0.4, generator=step_generator())
    assert torch.equal(torch.cat([micro_batch.masks.is_masked for micro_batch in micro_batches]), masks.is_masked)
    assert torch.equal(torch.cat([micro_batch.masks.visible_idx for micro_batch in micro_batches]), masks.visible_idx)
    for name, expected in task.method.prepare_inputs(draw_scenes()).items():
        assert torch.equal(torch.cat([micro_batch.maps[name] for micro_batch in micro_batches]), expected)


def test_masks_depend_only_on_seed_step_and_progress() -> None:
    def draw_hidden(seed: int = 3, step: int = 5, progress: float = 0.4) -> tuple[bool, ...]:
        (micro_batch,) = split_batch(make_task("c2fmae", seed=seed), step=step, progress=progress)
        return tuple(micro_batch.masks.is_masked.flatten().tolist())

    before = torch.get_rng_state()
    expected = draw_hidden()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert draw_hidden() == expected
    assert len({expected, draw_hidden(seed=4), draw_hidden(step=6), draw_hidden(progress=0.9)}) == 4


@pytest.mark.parametrize("num_micro_batches", [1, 4])
def test_hidden_and_labelled_cells_are_counted(num_micro_batches: int) -> None:
    task = make_task()
    micro_batches = split_batch(task, num_micro_batches=num_micro_batches)
    hidden, valid = dict.fromkeys(("semantic", "instance"), 0), dict.fromkeys(("semantic", "instance"), 0)
    for micro_batch in micro_batches:
        for index, name in enumerate(micro_batch.masks.granularities[:2]):
            for scene, patch in itertools.product(range(len(micro_batch.keys)), range(16)):
                if micro_batch.masks.is_masked[scene, index, patch]:
                    row, column = divmod(patch, 4)
                    cells = micro_batch.maps[name][scene, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    hidden[name] += 4
                    valid[name] += sum(cell != IGNORE for cell in cells.flatten().tolist())
    sums = sum_counts([task.compute_counts(micro_batch) for micro_batch in micro_batches])
    counts = {name: int(value) for name, value in sums.items()}
    assert {name: counts[f"hidden/{name}"] for name in hidden} == hidden
    assert {name: counts[f"valid/{name}"] for name in valid} == valid
    assert set(counts) == {*COARSE_TO_FINE, "hidden/semantic", "hidden/instance", "valid/semantic", "valid/instance"}
    assert counts["rgb"] == BATCH
    alpha, beta = CURRICULA.get("triangle")(0.4)
    fractions = {f"valid/{name}": valid[name] / hidden[name] for name in hidden}
    assert task.summarise_counts(counts, 0.4) == {**fractions, "alpha": alpha, "beta": beta}
    assert 0 < fractions["valid/instance"] < fractions["valid/semantic"] < 1


def test_labelled_fractions_are_zero_if_nothing_is_hidden() -> None:
    task = make_task()
    masks = Masks.from_visible_granularities(COARSE_TO_FINE, COARSE_TO_FINE, batch=BATCH, num_patches=16)
    counts = count_hidden_values(task.method.objectives, draw_scenes().maps, masks, "samples")
    numbers = {name: int(value) for name, value in counts.items()}
    assert set(numbers.values()) == {0}
    expected = {"valid/semantic": 0.0, "valid/instance": 0.0, "alpha": 1.0, "beta": 0.0}
    assert task.summarise_counts(numbers, 0.0) == expected


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("curriculum", ["triangle", "cosine", "constant"])
def test_the_coefficients_of_the_curriculum_are_logged(curriculum: str, progress: float) -> None:
    summary = make_task("c2fmae", f"masking.options.curriculum.name={curriculum}").summarise_counts({}, progress)
    assert (summary["alpha"], summary["beta"]) == CURRICULA.get(curriculum)(progress)


def test_methods_without_curriculum_or_maps_log_no_such_values() -> None:
    names = {"mae": [], "multimae": ["valid/semantic", "valid/instance"]}
    for method, expected in names.items():
        task = make_task(method)
        (micro_batch,) = split_batch(task)
        counts = {name: int(value) for name, value in task.compute_counts(micro_batch).items()}
        assert list(task.summarise_counts(counts, 0.5)) == expected


@pytest.mark.parametrize("average", ["samples", "cells"])
@pytest.mark.parametrize("name", ["c2fmae", "mae", "multimae"])
def test_losses_of_micro_batches_add_up_to_the_loss_of_the_batch(name: str, average: str) -> None:
    task = make_task(name, f"loss_average={average}", "loss_weights={semantic: 2, rgb: 0.5}")
    micro_batches = split_batch(task, world_size=2, num_micro_batches=2)
    counts = sum_counts([task.compute_counts(micro_batch) for micro_batch in micro_batches])
    losses = [task.compute_losses(task.method.model, micro_batch, counts) for micro_batch in micro_batches]
    expected = task.method.compute_step_loss(draw_scenes(), progress=0.4, generator=step_generator())
    torch.testing.assert_close(sum(loss.total for loss in losses), expected.total)
    terms = {key: sum(loss.terms[key].item() for loss in losses) for key in expected.terms}
    assert terms == pytest.approx({key: value.item() for key, value in expected.terms.items()}, rel=1e-5)
    weights = {"semantic": 2.0, "instance": 1.0, "rgb": 0.5, "rgb_normalized_pixels": 1.0}
    total = sum(weights[key] * value for key, value in terms.items())
    assert expected.total.item() == pytest.approx(total, rel=1e-5)


def test_sample_keys_are_those_of_the_micro_batch() -> None:
    task = make_task("mae")
    assert [tuple(task.sample_keys(micro_batch)) for micro_batch in split_batch(task, num_micro_batches=4)] == [
        (f"scene-{first}", f"scene-{first + 1}") for first in range(0, BATCH, 2)
    ]
