"""One step of every method: losses and gradients for any mask, micro-batch and number of processes."""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.spawn import spawn

from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models import DECODERS, patchify
from tests.methods import ddp_processes
from tests.methods.tiny_methods import (
    MASKED_METHODS,
    build_tiny_method,
    draw_noise_scenes,
    named_gradients,
    slice_masks,
    slice_scenes,
    to_float64,
)

pytestmark = pytest.mark.numeric

SUBSETS = [names for count in (1, 2, 3) for names in itertools.combinations(COARSE_TO_FINE, count)]


def seed_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def remove_labels(scenes: SceneBatch, *names: str, images: slice = slice(None)) -> SceneBatch:
    """Return scenes without labels in these maps of these images."""
    maps = dict(scenes.maps)
    for name in names:
        maps[name] = maps[name].clone()
        maps[name][images] = IGNORE
    return SceneBatch(scenes.keys, maps)


def extreme_masks(method: MaskedAutoencoding, scenes: SceneBatch) -> Iterator[tuple[SceneBatch, Masks]]:
    """Yield drawn masks, and masks and scenes with nothing visible, hidden or labelled."""
    names = method.config.granularities
    yield scenes, method.sample_masks(scenes, progress=0.4, generator=seed_generator())
    for visible in dict.fromkeys([(), names, *((name,) for name in names)]):
        yield scenes, Masks.from_visible_granularities(visible, names, batch=len(scenes), num_patches=4)
    all_hidden = Masks.from_visible_granularities((), names, batch=len(scenes), num_patches=4)
    yield remove_labels(scenes, "semantic", "instance"), all_hidden


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("decoder", list(DECODERS))
@pytest.mark.parametrize("name", MASKED_METHODS)
def test_every_parameter_gets_a_finite_gradient_for_any_mask(name: str, decoder: str, names: tuple[str, ...]) -> None:
    method = build_tiny_method(name, f"decoder={decoder}", granularities=names)
    for scenes, masks in extreme_masks(method, draw_noise_scenes()):
        method.model.zero_grad(set_to_none=True)
        maps = method.prepare_inputs(scenes)
        loss = method.compute_loss(method.model(maps, masks), maps, masks)
        loss.total.backward()
        assert loss.total.isfinite()
        assert [key for key, grad in named_gradients(method) if grad is None or not grad.isfinite().all()] == []


@pytest.mark.parametrize("num_visible", [0, 12])
def test_num_visible_may_be_zero_or_all_patches(num_visible: int) -> None:
    method = build_tiny_method("c2fmae", f"num_visible={num_visible}")
    loss = method.compute_step_loss(draw_noise_scenes(), progress=0.0, generator=seed_generator())
    assert (loss.total > 0).item() == (num_visible == 0)


def test_visible_patches_and_unlabelled_cells_have_no_loss() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes()
    for visible, expected in [("semantic", ["instance", "rgb"]), ("rgb", ["semantic", "instance"])]:
        masks = Masks.from_visible_granularities((visible,), COARSE_TO_FINE, batch=2, num_patches=4)
        maps = method.prepare_inputs(scenes)
        loss = method.compute_loss(method.model(maps, masks), maps, masks)
        assert [name for name, value in loss.terms.items() if value > 0] == expected
    unlabelled = remove_labels(scenes, "semantic")
    assert method.compute_step_loss(unlabelled, progress=0.4, generator=seed_generator()).terms["semantic"] == 0


@pytest.mark.parametrize(
    ("encoder", "size", "stride", "grid"),
    [
        ("test_vit", (32, 64), 4, (2, 4)),
        ("test_vit", (80, 48), 4, (5, 3)),
        ("vit_small_patch8_224", (64, 64), 4, (8, 8)),
        ("vit_small_patch14_dinov2", (28, 42), 2, (2, 3)),
    ],
)
def test_any_patch_size_and_any_image_size_that_it_divides(
    encoder: str, size: tuple[int, int], stride: int, grid: tuple[int, int]
) -> None:
    method = build_tiny_method("multimae", f"encoder.name={encoder}", size=size)
    scenes = draw_noise_scenes(size=size, stride=stride)
    masks = method.sample_masks(scenes, progress=0.0, generator=seed_generator())
    assert masks.is_masked.shape == (2, 3, grid[0] * grid[1])
    loss = method.compute_step_loss(scenes, progress=0.0, generator=seed_generator())
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(grad is not None and grad.isfinite().all() for _, grad in named_gradients(method))


@pytest.mark.parametrize("name", MASKED_METHODS)
def test_a_step_depends_only_on_scenes_progress_and_generator(name: str) -> None:
    totals, gradients = [], []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            method = build_tiny_method(name)
            before = torch.get_rng_state()
            loss = method.compute_step_loss(draw_noise_scenes(), progress=0.4, generator=seed_generator())
            loss.total.backward()
            assert torch.equal(torch.get_rng_state(), before)
        totals.append(loss.total)
        gradients.append(dict(named_gradients(method)))
    assert torch.equal(*totals)
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])  # type: ignore[arg-type]


def test_the_loss_changes_with_noise_progress_and_scenes() -> None:
    method, scenes = build_tiny_method(size=(64, 64)), draw_noise_scenes(size=(64, 64))
    losses = {
        method.compute_step_loss(scenes, progress=0.0, generator=seed_generator(0)).total.item(),
        method.compute_step_loss(scenes, progress=0.0, generator=seed_generator(1)).total.item(),
        method.compute_step_loss(scenes, progress=1.0, generator=seed_generator(0)).total.item(),
        method.compute_step_loss(
            draw_noise_scenes(size=(64, 64), seed=1), progress=0.0, generator=seed_generator(0)
        ).total.item(),
    }
    assert len(losses) == 4


def test_the_total_loss_is_the_weighted_sum_of_its_terms() -> None:
    settings = [
        "targets.rgb=[pixels, normalized_pixels]",
        "loss_weights={semantic: 2, rgb: 0, rgb_normalized_pixels: 0.5}",
    ]
    loss = build_tiny_method("c2fmae", *settings).compute_step_loss(
        draw_noise_scenes(), progress=0.4, generator=seed_generator()
    )
    terms = loss.terms
    assert list(terms) == ["semantic", "instance", "rgb", "rgb_normalized_pixels"]
    assert not any(term.requires_grad for term in terms.values())
    expected = 2 * terms["semantic"] + terms["instance"] + 0.5 * terms["rgb_normalized_pixels"]
    torch.testing.assert_close(loss.total.detach(), expected)


def test_a_mean_over_cells_weights_all_hidden_cells_equally() -> None:
    method = build_tiny_method("c2fmae", "loss_average=cells", size=(64, 64))
    scenes = remove_labels(draw_noise_scenes(4, (64, 64)), "semantic", images=slice(1))
    maps = method.prepare_inputs(scenes)
    masks = method.sample_masks(scenes, progress=0.4, generator=seed_generator())
    predictions = method.model(maps, masks)
    terms = method.compute_loss(predictions, maps, masks).terms
    for index, name in enumerate(("semantic", "instance")):
        is_masked = masks.is_masked[:, index]
        logits = predictions[name][is_masked].unflatten(1, (16, -1)).flatten(0, 1)
        expected = F.cross_entropy(logits, patchify(maps[name], 4)[is_masked].flatten().long(), ignore_index=IGNORE)
        torch.testing.assert_close(terms[name], expected.detach())
    is_masked = masks.is_masked[:, 2]
    expected = F.mse_loss(predictions["rgb"][is_masked], patchify(maps["rgb"], 16)[is_masked])
    torch.testing.assert_close(terms["rgb"], expected.detach())


@pytest.mark.parametrize("average", ["samples", "cells"])
@pytest.mark.parametrize("name", MASKED_METHODS)
def test_micro_batches_give_the_loss_and_gradients_of_the_batch(name: str, average: str) -> None:
    method = build_tiny_method(name, f"loss_average={average}", "num_visible=2")
    method.model.double()
    scenes = remove_labels(draw_noise_scenes(5), "semantic", images=slice(2))
    maps = to_float64(method.prepare_inputs(scenes))
    masks = method.sample_masks(scenes, progress=0.4, generator=seed_generator())
    expected_loss = method.compute_loss(method.model(maps, masks), maps, masks)
    expected_loss.total.backward()
    expected = {key: grad.clone() for key, grad in named_gradients(method) if grad is not None}
    method.model.zero_grad()

    slices = [(0, 1), (1, 4), (4, 5)]
    micro_batches = []
    for first, last in slices:
        part = slice_scenes(scenes, first, last)
        masks = method.sample_masks(part, progress=0.4, generator=seed_generator(), global_rows=(first, len(scenes)))
        micro_batches.append((to_float64(method.prepare_inputs(part)), masks))
    counts = [method.loss_counts(maps, masks) for maps, masks in micro_batches]
    total = {key: sum((count[key] for count in counts), torch.tensor(0)) for key in counts[0]}
    losses = []
    for maps, masks in micro_batches:
        loss = method.compute_loss(method.model(maps, masks), maps, masks, total)
        loss.total.backward()
        losses.append(loss)

    assert_close = partial(torch.testing.assert_close, atol=1e-12, rtol=1e-10)
    assert_close(sum(loss.total for loss in losses), expected_loss.total)
    for key, value in expected_loss.terms.items():
        assert_close(sum(loss.terms[key] for loss in losses), value)
    for key, grad in named_gradients(method):
        assert_close(grad, expected[key])


def test_a_micro_batch_gets_its_rows_of_the_masks_of_the_batch() -> None:
    method, scenes = build_tiny_method(size=(64, 64)), draw_noise_scenes(5, (64, 64))
    batch_masks = method.sample_masks(scenes, progress=0.4, generator=seed_generator())
    rows = method.sample_masks(slice_scenes(scenes, 1, 4), progress=0.4, generator=seed_generator(), global_rows=(1, 5))
    assert torch.equal(rows.is_masked, slice_masks(batch_masks, 1, 4).is_masked)
    assert torch.equal(rows.visible_idx, slice_masks(batch_masks, 1, 4).visible_idx)


@pytest.mark.unchecked
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    spawn(ddp_processes.run_rank, args=(tmp_path,), nprocs=ddp_processes.WORLD_SIZE)
    gradients = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ddp_processes.WORLD_SIZE)]
    method = ddp_processes.make_ddp_method()
    scenes = draw_noise_scenes(ddp_processes.WORLD_SIZE * ddp_processes.BATCH_PER_RANK)
    for step in range(2):
        rank_masks = [ddp_processes.make_rank_masks(method, step, rank) for rank in range(ddp_processes.WORLD_SIZE)]
        is_masked = torch.cat([masks.is_masked for masks in rank_masks])
        masks = Masks.from_mask(is_masked, COARSE_TO_FINE, num_visible=4)
        if step == 0:
            drawn_masks = method.sample_masks(scenes, progress=0.4, generator=seed_generator())
            assert torch.equal(masks.is_masked, drawn_masks.is_masked)
        method.model.zero_grad()
        maps = to_float64(method.prepare_inputs(scenes))
        method.compute_loss(method.model(maps, masks), maps, masks).total.backward()
        for key, grad in named_gradients(method):
            for rank in range(ddp_processes.WORLD_SIZE):
                torch.testing.assert_close(gradients[rank][step][key], grad, atol=1e-12, rtol=1e-10)


def test_a_replaced_model_computes_the_same_step() -> None:
    method = build_tiny_method()

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = method.model, 0

        def forward(self, *args: object) -> object:
            self.calls += 1
            return self.inner(*args)

    other = Counting()
    loss = dataclasses.replace(method, model=other).compute_step_loss(
        draw_noise_scenes(), progress=0.4, generator=seed_generator()
    )
    assert other.calls == 1
    expected = method.compute_step_loss(draw_noise_scenes(), progress=0.4, generator=seed_generator())
    assert torch.equal(loss.total, expected.total)
