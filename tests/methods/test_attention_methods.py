"""What is particular to the methods whose masks depend on the attention of the teacher: AttMask and MST."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods import METHODS
from c2fmae.methods.branches.attmask import AttMask
from c2fmae.methods.branches.ibot import IBOT
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.mst import MST, Restorer
from c2fmae.methods.branches.views import ViewBatch
from tests.methods.tiny_branches import (
    BATCH,
    PLAN,
    draw_scenes,
    make_method,
    perturb_teacher,
    split_batch,
    standardise_in_float64,
)

VIEWS = ("main", "second")
GRID = (14, 14)


@pytest.fixture(autouse=True)
def _float64_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let images be standardised in double precision."""
    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise_in_float64)


def make_attmask(*overrides: str) -> AttMask:
    method = make_method("attmask", *overrides)
    assert isinstance(method, AttMask)
    return method


def make_mst(*overrides: str) -> MST:
    method = make_method("mst", *overrides)
    assert isinstance(method, MST)
    return method


def attend(model: BranchModel, images: Tensor) -> Tensor:
    """Return the attention of the class token to each patch in the last block, head by head and patch by patch."""
    encoder = model.encoder
    tokens = model.embeddings["rgb"](images, torch.arange(len(images) * 16)).unflatten(0, (-1, 16))
    tokens = tokens + encoder.positions((4, 4), tokens.device)
    (before,) = encoder.get_intermediate_layers(tokens, [len(encoder.blocks) - 1])
    block: Any = encoder.blocks[-1]
    heads: int = block.attn.num_heads
    queries, keys, _ = block.attn.qkv(block.norm1(before)).chunk(3, dim=2)
    means = torch.zeros(len(images), 16, dtype=tokens.dtype)
    for image in range(len(images)):
        for query, key in zip(queries[image, 0].chunk(heads), keys[image].chunk(heads, dim=1), strict=True):
            weights = torch.stack([torch.dot(query, one) / len(query) ** 0.5 for one in key]).exp()
            means[image] += (weights / weights.sum())[1:] / heads
    return means


@pytest.mark.parametrize("name", ["attmask", "mst"])
def test_the_attention_is_that_of_the_teachers_last_block_in_unmasked_views(name: str) -> None:
    method = make_method(name)
    teacher = perturb_teacher(method)
    part = split_batch(method)
    with torch.no_grad():
        for view, view_name in enumerate(VIEWS):
            found, images = part.targets["attention"][:, view], part.images(view_name)
            torch.testing.assert_close(found, attend(teacher, images))
            assert not torch.allclose(found, attend(method.model, images))
            torch.testing.assert_close(part.targets["image"][:, view], teacher.encode(images)[:, 0])


def rank_patches(attention: Tensor) -> list[int]:
    """Return the patches of an image, the most attended first."""
    return sorted(range(len(attention)), key=lambda patch: -float(attention[patch]))


def test_the_masks_of_attmask_hide_what_is_attended_to_most_but_hints() -> None:
    method = make_attmask("mask_ratio=[0.5, 0.9]", "mask_chance=0.6")
    perturb_teacher(method)
    part = split_batch(method)
    masks, draw = method.choose_masks(part), part.masks
    num_hints = int(draw["num_hints"][0])
    assert num_hints > 0
    for view, name in enumerate(VIEWS):
        for image in range(BATCH):
            ranked = rank_patches(part.targets["attention"][image, view])
            noise = draw["hint_noise"][image, view]
            hints = sorted(ranked[: int(0.5 * 16)], key=lambda patch: -float(noise[patch]))[:num_hints]
            hidden = set(ranked[: int(draw["num_hidden"][image, view])]) - set(hints)
            assert set(masks[name][image].nonzero().flatten().tolist()) == hidden
    high = make_attmask("mask_ratio=[0.5, 0.9]", "mask_chance=0.6", "hint_fraction=0")
    perturb_teacher(high)
    part = split_batch(high)
    for view, name in enumerate(VIEWS):
        assert torch.equal(high.choose_masks(part)[name].sum(dim=1), part.masks["num_hidden"][:, view])


def test_attmask_has_one_ratio_of_a_step_and_hides_nothing_in_half_of_the_views() -> None:
    config = METHODS.get("attmask")()
    draws = [AttMask.draw_masks(config, GRID, range(1000), RowGenerator(step)) for step in range(40)]
    for draw in draws:
        number = int(draw["num_hidden"].max())
        assert int(0.1 * 196) <= number <= int(0.5 * 196)
        assert draw["num_hidden"].unique().tolist() == [0, number]
        is_chosen = draw["num_hidden"] > 0
        assert is_chosen.double().mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.06)
        assert (is_chosen[:, 0] == is_chosen[:, 1]).double().mean().item() == pytest.approx(0.5, abs=0.06)
        assert len(draw["num_hints"].unique()) == 1
        assert int(0.01 * 196) <= int(draw["num_hints"][0]) <= int(0.05 * 196)
    pairs = {(int(draw["num_hidden"].max()), int(draw["num_hints"][0])) for draw in draws}
    hidden, hints = (torch.tensor(numbers, dtype=torch.float64) for numbers in zip(*pairs, strict=True))
    assert len(hidden.unique()) > 20
    assert len(hints.unique()) > 5
    assert torch.corrcoef(torch.stack([hidden, hints]))[0, 1].abs() < 0.6  # the count of hints has a draw of its own


@pytest.mark.parametrize("name", ["attmask", "mst"])
def test_draws_depend_on_the_step_and_not_on_ranks_and_micro_batches(name: str) -> None:
    method = make_method(name)
    preparer = method.build_task(PLAN, seed=0).preparer

    def draw(step: int, world: World, num_micro_batches: int = 1) -> dict[str, Tensor]:
        scenes = draw_scenes(method, world=world)
        parts = preparer.prepare(scenes, num_micro_batches=num_micro_batches, step=step, progress=0.0, world=world)
        return {key: torch.cat([part.masks[key] for part in parts]) for key in parts[0].masks}

    whole, ranks = draw(1, World()), [draw(1, World(rank, 2), num_micro_batches=2) for rank in range(2)]
    assert all(torch.equal(torch.cat([rank[key] for rank in ranks]), value) for key, value in whole.items())
    assert not any(
        torch.equal(draw(2, World())[key], value) for key, value in whole.items() if value.is_floating_point()
    )


def change_hidden_pixels(part: ViewBatch, masks: Tensor) -> ViewBatch:
    """Return a batch with other pixels in the hidden patches of large views, which the teacher has seen before."""
    pixels = masks.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    views = dict(part.views)
    for name, hidden in zip(VIEWS, pixels.chunk(2), strict=True):
        views[name] = torch.where(hidden.unsqueeze(1), views[name] + 1, views[name])
    return replace(part, views=views)


def test_hidden_patches_of_attmask_do_not_reach_the_student() -> None:
    method = make_attmask()
    part = split_batch(method)
    masks = method.choose_masks(part)
    changed = change_hidden_pixels(part, torch.cat([masks[name] for name in VIEWS]))
    assert all(masks[name].any() for name in VIEWS)
    assert not torch.equal(changed.images(*VIEWS), part.images(*VIEWS))
    with torch.no_grad():
        losses, again = (method.compute_losses(method.model, batch).losses for batch in (part, changed))
    assert all(torch.equal(again[name], values) for name, values in losses.items())


def test_the_losses_of_attmask_are_those_of_ibot_with_its_masks() -> None:
    method = make_attmask()
    perturb_teacher(method)
    part = split_batch(method)
    ibot = IBOT(method.config, method.model, method.teacher, method.patch_size)
    (target,) = ibot.add_targets([part])
    with torch.no_grad():
        found = method.compute_losses(method.model, part).losses
        expected = ibot.compute_losses(method.model, replace(target, masks=method.choose_masks(part))).losses
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_some_of_the_least_attended_patches_are_hidden_by_mst() -> None:
    method = make_mst("low_fraction=0.5", "mask_chance=0.4")
    perturb_teacher(method)
    part = split_batch(method)
    masks = method.choose_masks(part)
    for view, is_masked in enumerate(masks.chunk(2)):
        for image in range(BATCH):
            lowest = set(rank_patches(part.targets["attention"][image, view])[8:])
            noise = part.masks["noise"][image, view]
            assert set(is_masked[image].nonzero().flatten().tolist()) == {
                patch for patch in lowest if noise[patch] < 0.4
            }
    assert len(masks.sum(dim=1).unique()) > 2  # each patch has its own chance, so that the numbers differ


def test_hidden_patches_of_mst_do_not_reach_the_student_and_are_restored() -> None:
    method = make_mst("low_fraction=0.5")
    part = split_batch(method)
    masks = method.choose_masks(part)
    changed = change_hidden_pixels(part, masks)
    with torch.no_grad():
        losses, again = (method.compute_losses(method.model, batch).losses for batch in (part, changed))
        tokens, other = (
            method.model.compute_latents(batch.images(*VIEWS), is_masked=masks) for batch in (part, changed)
        )
    assert tokens.shape[1] == 17
    assert torch.equal(tokens, other)
    assert torch.equal(again["image"], losses["image"])
    assert not (again["rgb"] == losses["rgb"]).any()


def test_mst_restores_all_pixels_by_absolute_errors() -> None:
    method = make_mst()
    part = split_batch(method)
    images = part.images(*VIEWS)
    with torch.no_grad():
        tokens = method.model.compute_latents(images, is_masked=method.choose_masks(part))
        values = method.model.heads["restorer"](tokens[:, 1:], (4, 4))
        found = method.compute_losses(method.model, part).losses["rgb"]
    # A patch's values are ordered by row, column and channel.
    restored = values.view(2 * BATCH, 4, 4, 8, 8, 3).permute(0, 5, 1, 3, 2, 4).reshape(images.shape)
    errors = (restored - images).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, (errors[:BATCH] + errors[BATCH:]) / 2)


def test_the_restorer_sees_neighbours_in_the_grid_and_no_other_images() -> None:
    restorer = Restorer(6, 4, 5).double()
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 2 * 8, 6, generator=generator, dtype=torch.float64)
    changed = patches.clone()
    changed[0, 8 + 6] += 1  # row 1, column 6
    with torch.no_grad():
        is_changed = (restorer(changed, (2, 8)) != restorer(patches, (2, 8))).any(dim=2)
    assert not is_changed[1].any()
    assert is_changed[0].view(2, 8).nonzero().tolist() == [[row, column] for row in (0, 1) for column in (4, 5, 6, 7)]


@pytest.mark.parametrize("name", ["attmask", "mst"])
def test_the_teacher_has_neither_a_mask_token_nor_a_restorer(name: str) -> None:
    teacher = make_method(name).teacher
    assert teacher is not None
    parts = {key.split(".")[0] for key, _ in teacher.named_parameters()}
    assert parts == {"embeddings", "encoder", "heads"}
    assert list(teacher.heads) == ["prototypes"]


@pytest.mark.parametrize("name", ["attmask", "mst"])
def test_the_teacher_sees_the_views_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make_method(name)
    assert method.teacher is not None
    sizes: list[int] = []
    method.teacher.encoder.blocks[0].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    split_batch(method)
    assert sizes == [2 * BATCH]
