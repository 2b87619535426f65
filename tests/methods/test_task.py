import itertools

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.loop import Task
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.masking import CURRICULA
from c2fmae.methods.masked.task import MicroBatch, PretrainingTask
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, slice_scenes

pytestmark = pytest.mark.numeric

SIZE, BATCH = (32, 32), 8
SMALL = ["encoder.dim=32", "encoder.depth=1", "encoder.num_heads=2", "encoder.patch_size=8", "decoder.options.dim=16"]


def task(name: str = "c2fmae", *overrides: str, seed: int = 3) -> PretrainingTask:
    return PretrainingTask(build_tiny_method(name, *SMALL, *overrides, size=SIZE), seed)


def scenes() -> SceneBatch:
    """Some have no object, and of some no cell is labelled."""
    found = draw_noise_scenes(BATCH, SIZE)
    found.maps["instance"][1] = 0
    found.maps["instance"][2:4] = IGNORE
    found.maps["semantic"][4] = IGNORE
    return found


def split(
    each: PretrainingTask, *, step: int = 5, progress: float = 0.4, size: int = 1, parts: int = 1
) -> list[MicroBatch]:
    """The parts of all processes, one after the other."""
    share = BATCH // size
    return [
        found
        for rank in range(size)
        for found in each.split(
            slice_scenes(scenes(), rank * share, (rank + 1) * share),
            num_micro_batches=parts,
            step=step,
            progress=progress,
            world=World(rank, size),
        )
    ]


def added(counts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in counts]).sum() for name in counts[0]}


def test_it_is_what_the_loop_trains() -> None:
    assert isinstance(task(), Task)


@pytest.mark.parametrize(("size", "parts"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_a_batch_is_hidden_alike_however_it_is_shared_out(size: int, parts: int) -> None:
    each = task()
    found = split(each, size=size, parts=parts)
    assert len(found) == size * parts
    assert {len(one.keys) for one in found} == {BATCH // size // parts}
    assert tuple(key for one in found for key in one.keys) == scenes().keys
    noise = torch.Generator().manual_seed(derive_seed(3, "masks", 5))
    whole = each.method.sample_masks(scenes(), progress=0.4, generator=noise)
    assert torch.equal(torch.cat([one.masks.is_masked for one in found]), whole.is_masked)
    assert torch.equal(torch.cat([one.masks.visible_idx for one in found]), whole.visible_idx)
    for name, expected in each.method.prepare_inputs(scenes()).items():
        assert torch.equal(torch.cat([one.maps[name] for one in found]), expected)


def test_what_is_hidden_depends_on_seed_step_and_progress_alone() -> None:
    def hidden(seed: int = 3, **place: int | float) -> list[bool]:
        (found,) = split(task("c2fmae", seed=seed), **place)  # type: ignore[arg-type]
        return found.masks.is_masked.flatten().tolist()

    before = torch.get_rng_state()
    expected = hidden()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert hidden() == expected
    assert len({tuple(each) for each in (expected, hidden(seed=4), hidden(step=6), hidden(progress=0.9))}) == 4


@pytest.mark.parametrize("parts", [1, 4])
def test_labelled_cells_are_counted_as_by_hand(parts: int) -> None:
    each = task()
    found = split(each, parts=parts)
    hidden, valid = dict.fromkeys(("semantic", "instance"), 0), dict.fromkeys(("semantic", "instance"), 0)
    for one in found:
        for place, name in enumerate(one.masks.granularities[:2]):
            for scene, patch in itertools.product(range(len(one.keys)), range(16)):
                if one.masks.is_masked[scene, place, patch]:
                    row, column = divmod(patch, 4)
                    cells = one.maps[name][scene, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    hidden[name] += 4
                    valid[name] += sum(cell != IGNORE for cell in cells.flatten().tolist())
    counts = {name: int(value) for name, value in added([each.compute_counts(one) for one in found]).items()}
    assert {name: counts[f"hidden/{name}"] for name in hidden} == hidden
    assert {name: counts[f"valid/{name}"] for name in valid} == valid
    assert set(counts) == {*COARSE_TO_FINE, "hidden/semantic", "hidden/instance", "valid/semantic", "valid/instance"}
    assert counts["rgb"] == BATCH
    alpha, beta = CURRICULA.get("triangle")(0.4)
    shares = {f"valid/{name}": valid[name] / hidden[name] for name in hidden}
    assert each.summarise_counts(counts, 0.4) == {**shares, "alpha": alpha, "beta": beta}
    assert 0 < shares["valid/instance"] < shares["valid/semantic"] < 1


def test_where_nothing_is_hidden_no_share_of_it_is_labelled() -> None:
    each = task()
    masks = Masks.from_visible_granularities(COARSE_TO_FINE, COARSE_TO_FINE, batch=BATCH, num_patches=16)
    counts = each.compute_counts(MicroBatch(scenes().keys, each.method.prepare_inputs(scenes()), masks))
    numbers = {name: int(value) for name, value in counts.items()}
    assert set(numbers.values()) == {0}
    found = each.summarise_counts(numbers, 0.0)
    assert found == {"valid/semantic": 0.0, "valid/instance": 0.0, "alpha": 1.0, "beta": 0.0}


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("curriculum", ["triangle", "cosine", "constant"])
def test_a_curriculum_says_how_far_it_is(curriculum: str, progress: float) -> None:
    each = task("c2fmae", f"masking.options.curriculum.name={curriculum}")
    found = each.summarise_counts({}, progress)
    assert (found["alpha"], found["beta"]) == CURRICULA.get(curriculum)(progress)


def test_a_method_without_a_curriculum_or_maps_tells_of_none() -> None:
    shares = {"mae": [], "multimae": ["valid/semantic", "valid/instance"]}
    for name, expected in shares.items():
        each = task(name)
        (found,) = split(each)
        counts = {key: int(value) for key, value in each.compute_counts(found).items()}
        assert list(each.summarise_counts(counts, 0.5)) == expected


@pytest.mark.parametrize("average", ["samples", "cells"])
@pytest.mark.parametrize("name", ["c2fmae", "mae", "multimae"])
def test_the_losses_of_the_parts_add_up_to_that_of_the_batch(name: str, average: str) -> None:
    each = task(name, f"loss_average={average}", "loss_weights={semantic: 2, rgb: 0.5}")
    found = split(each, size=2, parts=2)
    counts = added([each.compute_counts(one) for one in found])
    losses = [each.compute_losses(each.method.model, one, counts) for one in found]
    noise = torch.Generator().manual_seed(derive_seed(3, "masks", 5))
    whole = each.method.compute_step_loss(scenes(), progress=0.4, generator=noise)
    torch.testing.assert_close(sum(loss.total for loss in losses), whole.total)
    parts = {key: sum(loss.terms[key].item() for loss in losses) for key in whole.terms}
    assert parts == pytest.approx({key: value.item() for key, value in whole.terms.items()}, rel=1e-5)
    weights = {"semantic": 2.0, "instance": 1.0, "rgb": 0.5, "rgb_normalized_pixels": 1.0}
    assert whole.total.item() == pytest.approx(sum(weights[key] * value for key, value in parts.items()), rel=1e-5)


def test_a_part_knows_its_scenes() -> None:
    each = task("mae")
    assert [tuple(each.sample_keys(one)) for one in split(each, parts=4)] == [
        (f"scene-{first}", f"scene-{first + 1}") for first in range(0, BATCH, 2)
    ]
