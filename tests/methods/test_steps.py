"""One step of every method: it has a loss and gradients whatever is hidden, and they depend on what goes in alone."""

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
from c2fmae.methods import METHODS, MaskedAutoencoding
from c2fmae.models import DECODERS, patchify
from tests.methods import ddp_processes
from tests.methods.tiny_methods import (
    build_tiny_method,
    draw_noise_scenes,
    named_gradients,
    slice_masks,
    slice_scenes,
    to_float64,
)

pytestmark = pytest.mark.numeric

SUBSETS = [names for count in (1, 2, 3) for names in itertools.combinations(COARSE_TO_FINE, count)]


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unlabelled(scenes: SceneBatch, *names: str, images: slice = slice(None)) -> SceneBatch:
    """The scenes, without any label in these maps of these images."""
    maps = dict(scenes.maps)
    for name in names:
        maps[name] = maps[name].clone()
        maps[name][images] = IGNORE
    return SceneBatch(scenes.keys, maps)


def extremes(method: MaskedAutoencoding, scenes: SceneBatch) -> Iterator[tuple[SceneBatch, Masks]]:
    """The usual masks, and all the ways in which there may be nothing to see, to predict or to compare."""
    names = method.config.granularities
    yield scenes, method.sample_masks(scenes, progress=0.4, generator=noise())
    for shown in dict.fromkeys([(), names, *((name,) for name in names)]):
        yield scenes, Masks.from_visible_granularities(shown, names, batch=len(scenes), num_patches=4)
    nothing = Masks.from_visible_granularities((), names, batch=len(scenes), num_patches=4)
    yield unlabelled(scenes, "semantic", "instance"), nothing


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("decoder", list(DECODERS))
@pytest.mark.parametrize("name", list(METHODS))
def test_every_parameter_gets_a_finite_gradient_whatever_is_hidden(
    name: str, decoder: str, names: tuple[str, ...]
) -> None:
    method = build_tiny_method(name, f"decoder.name={decoder}", granularities=names)
    for scenes, masks in extremes(method, draw_noise_scenes()):
        method.model.zero_grad(set_to_none=True)
        maps = method.prepare_inputs(scenes)
        loss = method.compute_loss(method.model(maps, masks), maps, masks)
        loss.total.backward()
        assert loss.total.isfinite()
        assert [key for key, grad in named_gradients(method) if grad is None or not grad.isfinite().all()] == []


@pytest.mark.parametrize("num_visible", [0, 12])
def test_all_may_be_hidden_or_visible_by_config(num_visible: int) -> None:
    method = build_tiny_method("c2fmae", f"num_visible={num_visible}")
    loss = method.compute_step_loss(draw_noise_scenes(), progress=0.0, generator=noise())
    assert (loss.total > 0).item() == (num_visible == 0)


def test_what_is_visible_or_unlabelled_has_no_loss() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes()
    for shown, expected in [("semantic", ["instance", "rgb"]), ("rgb", ["semantic", "instance"])]:
        masks = Masks.from_visible_granularities((shown,), COARSE_TO_FINE, batch=2, num_patches=4)
        maps = method.prepare_inputs(scenes)
        loss = method.compute_loss(method.model(maps, masks), maps, masks)
        assert [name for name, value in loss.terms.items() if value > 0] == expected
    blank = unlabelled(scenes, "semantic")
    assert method.compute_step_loss(blank, progress=0.4, generator=noise()).terms["semantic"] == 0


@pytest.mark.parametrize(
    ("encoder", "size", "stride", "grid"),
    [
        ("test_vit", (32, 64), 4, (2, 4)),
        ("test_vit", (80, 48), 4, (5, 3)),
        ("vit_small_patch8_224", (64, 64), 4, (8, 8)),
        ("vit_small_patch14_dinov2", (28, 42), 2, (2, 3)),
    ],
)
def test_any_patch_and_any_size_that_it_divides(
    encoder: str, size: tuple[int, int], stride: int, grid: tuple[int, int]
) -> None:
    method = build_tiny_method("multimae", f"encoder.name={encoder}", size=size)
    scenes = draw_noise_scenes(size=size, stride=stride)
    masks = method.sample_masks(scenes, progress=0.0, generator=noise())
    assert masks.is_masked.shape == (2, 3, grid[0] * grid[1])
    loss = method.compute_step_loss(scenes, progress=0.0, generator=noise())
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(grad is not None and grad.isfinite().all() for _, grad in named_gradients(method))


@pytest.mark.parametrize("name", list(METHODS))
def test_a_step_is_a_function_of_scenes_progress_and_generator_alone(name: str) -> None:
    totals, found = [], []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            method = build_tiny_method(name)
            before = torch.get_rng_state()
            loss = method.compute_step_loss(draw_noise_scenes(), progress=0.4, generator=noise())
            loss.total.backward()
            assert torch.equal(torch.get_rng_state(), before)
        totals.append(loss.total)
        found.append(dict(named_gradients(method)))
    assert torch.equal(*totals)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])  # type: ignore[arg-type]


def test_other_noise_another_progress_and_other_scenes_give_another_loss() -> None:
    method, scenes = build_tiny_method(size=(64, 64)), draw_noise_scenes(size=(64, 64))
    losses = {
        method.compute_step_loss(scenes, progress=0.0, generator=noise(0)).total.item(),
        method.compute_step_loss(scenes, progress=0.0, generator=noise(1)).total.item(),
        method.compute_step_loss(scenes, progress=1.0, generator=noise(0)).total.item(),
        method.compute_step_loss(
            draw_noise_scenes(size=(64, 64), seed=1), progress=0.0, generator=noise(0)
        ).total.item(),
    }
    assert len(losses) == 4


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    settings = [
        "targets.rgb=[pixels, normalized_pixels]",
        "loss_weights={semantic: 2, rgb: 0, rgb_normalized_pixels: 0.5}",
    ]
    loss = build_tiny_method("c2fmae", *settings).compute_step_loss(
        draw_noise_scenes(), progress=0.4, generator=noise()
    )
    parts = loss.terms
    assert list(parts) == ["semantic", "instance", "rgb", "rgb_normalized_pixels"]
    assert not any(part.requires_grad for part in parts.values())
    expected = 2 * parts["semantic"] + parts["instance"] + 0.5 * parts["rgb_normalized_pixels"]
    torch.testing.assert_close(loss.total.detach(), expected)


def test_a_mean_over_cells_counts_all_hidden_cells_alike() -> None:
    method = build_tiny_method("c2fmae", "loss_average=cells", size=(64, 64))
    scenes = unlabelled(draw_noise_scenes(4, (64, 64)), "semantic", images=slice(1))
    maps = method.prepare_inputs(scenes)
    masks = method.sample_masks(scenes, progress=0.4, generator=noise())
    predictions = method.model(maps, masks)
    found = method.compute_loss(predictions, maps, masks).terms
    for index, name in enumerate(("semantic", "instance")):
        is_masked = masks.is_masked[:, index]
        logits = predictions[name][is_masked].unflatten(1, (16, -1)).flatten(0, 1)
        expected = F.cross_entropy(logits, patchify(maps[name], 4)[is_masked].flatten().long(), ignore_index=IGNORE)
        torch.testing.assert_close(found[name], expected.detach())
    is_masked = masks.is_masked[:, 2]
    expected = F.mse_loss(predictions["rgb"][is_masked], patchify(maps["rgb"], 16)[is_masked])
    torch.testing.assert_close(found["rgb"], expected.detach())


@pytest.mark.parametrize("average", ["samples", "cells"])
@pytest.mark.parametrize("name", list(METHODS))
def test_micro_batches_give_the_loss_and_the_gradients_of_the_whole(name: str, average: str) -> None:
    method = build_tiny_method(name, f"loss_average={average}", "num_visible=2")
    method.model.double()
    scenes = unlabelled(draw_noise_scenes(5), "semantic", images=slice(2))
    maps = to_float64(method.prepare_inputs(scenes))
    masks = method.sample_masks(scenes, progress=0.4, generator=noise())
    whole = method.compute_loss(method.model(maps, masks), maps, masks)
    whole.total.backward()
    expected = {key: grad.clone() for key, grad in named_gradients(method) if grad is not None}
    method.model.zero_grad()

    cuts = [(0, 1), (1, 4), (4, 5)]
    parts = []
    for first, last in cuts:
        scene = slice_scenes(scenes, first, last)
        masks = method.sample_masks(scene, progress=0.4, generator=noise(), global_rows=(first, len(scenes)))
        parts.append((to_float64(method.prepare_inputs(scene)), masks))
    counts = [method.loss_counts(*each) for each in parts]
    total = {key: sum((count[key] for count in counts), torch.tensor(0)) for key in counts[0]}
    losses = []
    for maps, masks in parts:
        loss = method.compute_loss(method.model(maps, masks), maps, masks, total)
        loss.total.backward()
        losses.append(loss)

    close = partial(torch.testing.assert_close, atol=1e-12, rtol=1e-10)
    close(sum(loss.total for loss in losses), whole.total)
    for key, value in whole.terms.items():
        close(sum(loss.terms[key] for loss in losses), value)
    for key, grad in named_gradients(method):
        close(grad, expected[key])


def test_a_micro_batch_gets_its_rows_of_the_masks_of_the_whole() -> None:
    method, scenes = build_tiny_method(size=(64, 64)), draw_noise_scenes(5, (64, 64))
    whole = method.sample_masks(scenes, progress=0.4, generator=noise())
    mine = method.sample_masks(slice_scenes(scenes, 1, 4), progress=0.4, generator=noise(), global_rows=(1, 5))
    assert torch.equal(mine.is_masked, slice_masks(whole, 1, 4).is_masked)
    assert torch.equal(mine.visible_idx, slice_masks(whole, 1, 4).visible_idx)


@pytest.mark.once
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    spawn(ddp_processes.run_rank, args=(tmp_path,), nprocs=ddp_processes.WORLD_SIZE)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ddp_processes.WORLD_SIZE)]
    method = ddp_processes.make_ddp_method()
    scenes = draw_noise_scenes(ddp_processes.WORLD_SIZE * ddp_processes.BATCH_PER_RANK)
    for step in range(2):
        each = [ddp_processes.make_rank_masks(method, step, rank).is_masked for rank in range(ddp_processes.WORLD_SIZE)]
        masks = Masks.from_mask(torch.cat(each), COARSE_TO_FINE, num_visible=4)
        if step == 0:
            assert torch.equal(masks.is_masked, method.sample_masks(scenes, progress=0.4, generator=noise()).is_masked)
        method.model.zero_grad()
        maps = to_float64(method.prepare_inputs(scenes))
        method.compute_loss(method.model(maps, masks), maps, masks).total.backward()
        for key, grad in named_gradients(method):
            for rank in range(ddp_processes.WORLD_SIZE):
                torch.testing.assert_close(found[rank][step][key], grad, atol=1e-12, rtol=1e-10)


def test_another_model_takes_the_same_step() -> None:
    method = build_tiny_method()

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = method.model, 0

        def forward(self, *args: object) -> object:
            self.calls += 1
            return self.inner(*args)

    other = Counting()
    found = dataclasses.replace(method, model=other).compute_step_loss(
        draw_noise_scenes(), progress=0.4, generator=noise()
    )
    assert other.calls == 1
    assert torch.equal(
        found.total, method.compute_step_loss(draw_noise_scenes(), progress=0.4, generator=noise()).total
    )
