"""Training that decodes a share of the patches: exact losses and counts, the same selection everywhere."""

import pickle
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.masking import RowGenerator
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost
from c2fmae.methods.masked.describe import describe_architecture
from c2fmae.methods.masked.task import MicroBatch, PretrainingTask
from c2fmae.models import DECODERS, patchify
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe
from c2fmae.replay import replay_step
from tests.methods.tiny_methods import (
    MASKED_METHODS,
    build_tiny_method,
    draw_noise_scenes,
    make_tiny_config,
    named_gradients,
    slice_scenes,
    to_float64,
)

pytestmark = pytest.mark.numeric

BATCH, SIZE = 8, (32, 32)
SMALL = ["encoder.dim=32", "encoder.depth=1", "encoder.num_heads=2", "encoder.patch_size=8", "decoder.options.dim=16"]


def build(name: str = "c2fmae", *overrides: str, decoded_share: float = 0.25) -> MaskedAutoencoding:
    """Return a method for images of 16 patches in double precision; some images hide fewer patches than they decode."""
    settings = [
        f"decoder.share={decoded_share}",
        "concentration={semantic: 0.3, instance: 0.3, rgb: 6}",
        "num_visible=15",
    ]
    method = build_tiny_method(name, *SMALL, *settings, *overrides, size=SIZE)
    method.model.double()
    return method


def split_batch(
    method: MaskedAutoencoding, *, world_size: int = 1, num_micro_batches: int = 1, step: int = 5
) -> list[MicroBatch]:
    """Return the micro-batches of all ranks, in order, with maps in double precision."""
    size = BATCH // world_size
    micro_batches = [
        micro_batch
        for rank in range(world_size)
        for micro_batch in PretrainingTask(method, 3).split(
            slice_scenes(draw_noise_scenes(BATCH, SIZE), rank * size, (rank + 1) * size),
            num_micro_batches=num_micro_batches,
            step=step,
            progress=0.4,
            world=World(rank, world_size),
        )
    ]
    return [replace(each, maps=to_float64(dict(each.maps))) for each in micro_batches]


def list_decoded(masks: Masks) -> torch.Tensor:
    assert masks.decoded_idx is not None
    return masks.decoded_idx


@pytest.mark.parametrize("average", ["samples", "cells"])
@pytest.mark.parametrize("name", MASKED_METHODS)
def test_micro_batches_of_ranks_give_the_loss_and_gradients_of_the_batch(name: str, average: str) -> None:
    method = build(name, f"loss_average={average}")
    task = PretrainingTask(method, 3)

    def learn(world_size: int, num_micro_batches: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        method.model.zero_grad()
        parts = split_batch(method, world_size=world_size, num_micro_batches=num_micro_batches)
        counts = {name: torch.stack([part.counts[name] for part in parts]).sum() for name in parts[0].counts}
        for part in parts:
            task.compute_losses(method.model, part, counts).total.backward()
        gradients = {key: grad.clone() for key, grad in named_gradients(method) if grad is not None}
        return gradients | counts, torch.cat([list_decoded(part.masks) for part in parts])

    expected, selection = learn(1, 1)
    assert expected.keys() > {key for key, _ in named_gradients(method)}
    for world_size, num_micro_batches in ((1, 4), (2, 2)):
        values, own_selection = learn(world_size, num_micro_batches)
        assert torch.equal(own_selection, selection)
        for key, value in values.items():
            torch.testing.assert_close(value, expected[key], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("average", ["samples", "cells"])
def test_the_loss_is_that_of_all_patches_restricted_to_hidden_decoded_ones(average: str) -> None:
    """Without self-attention among decoded patches, their predictions do not depend on the selection."""
    method = build(
        "c2fmae", "decoder={name: parallel, share: 0.25, options: {dim: 16, depth: 0}}", f"loss_average={average}"
    )
    (part,) = split_batch(method)
    masks, maps = part.masks, part.maps
    everything = method.model(maps, replace(masks, decoded_idx=None))
    terms = method.compute_loss(method.model(maps, masks), maps, masks, part.counts).terms
    num_visible_decoded = 0
    for index, name in enumerate(COARSE_TO_FINE):
        means, cells = [], []
        for image in range(BATCH):
            listed = list_decoded(masks)[image, index]
            patches = listed[masks.is_masked[image, index, listed]]
            num_visible_decoded += len(listed) - len(patches)
            predictions = everything[name][image, patches]
            if name == "rgb":
                true = patchify(maps["rgb"], 8)[image, patches]
                errors = F.mse_loss(predictions, true, reduction="none").mean(dim=1)
            else:
                true = patchify(maps[name], 2)[image, patches].long()
                logits = predictions.unflatten(1, (4, -1))[true != IGNORE]
                errors = F.cross_entropy(logits, true[true != IGNORE], reduction="none")
            cells.append(errors)
            means += [errors.mean()] if len(errors) else []
        expected = torch.stack(means).mean() if average == "samples" else torch.cat(cells).mean()
        torch.testing.assert_close(terms[name].double(), expected, atol=1e-6, rtol=1e-6)
    assert num_visible_decoded > 0


def test_a_share_leaves_the_masks_as_they_are_and_another_step_draws_another_selection() -> None:
    parts = {share: split_batch(build(decoded_share=share))[0] for share in (0.01, 0.25, 0.5, 0.99, 1.0)}
    sizes = {share: None if (idx := part.masks.decoded_idx) is None else idx.shape[2] for share, part in parts.items()}
    assert sizes == {0.01: 1, 0.25: 4, 0.5: 8, 0.99: None, 1.0: None}  # of 16 patches
    for part in parts.values():
        assert torch.equal(part.masks.is_masked, parts[1.0].masks.is_masked)
        assert torch.equal(part.masks.visible_idx, parts[1.0].masks.visible_idx)
    other = split_batch(build(), step=6)[0]
    assert not torch.equal(list_decoded(other.masks), list_decoded(parts[0.25].masks))


def test_masking_that_is_sent_to_a_data_worker_keeps_the_share() -> None:
    preparer = PretrainingTask(build(), 3).preparer
    scenes = draw_noise_scenes(BATCH, SIZE)
    (expected,), (masked,) = (
        each.prepare(scenes, num_micro_batches=1, step=5, progress=0.4, world=World())
        for each in (preparer, pickle.loads(pickle.dumps(preparer)))
    )
    assert torch.equal(list_decoded(masked.masks), list_decoded(expected.masks))


def test_an_own_loop_decodes_the_share_but_evaluation_and_prediction_all_patches() -> None:
    method, scenes = build(), draw_noise_scenes(BATCH, SIZE)
    method.model.float()
    own = method.masking.sample(scenes, progress=0.4, generator=RowGenerator(1), decodes_all=False)
    maps = method.prepare_inputs(scenes)
    expected = method.compute_loss(method.model(maps, own), maps, own).total
    assert method.compute_step_loss(scenes, progress=0.4, generator=RowGenerator(1)).total == expected
    masks = method.sample_masks(scenes, progress=0.4, generator=RowGenerator(1))
    assert masks.decoded_idx is None
    assert torch.equal(masks.is_masked, own.is_masked)
    for name, predicted in method.predict(scenes, own).maps.items():
        assert torch.equal(predicted, method.predict(scenes, masks).maps[name])


@pytest.mark.parametrize("value", ["0", "-0.5", "1.2", "many", "nan"])
def test_a_share_that_is_no_fraction_is_rejected(value: str) -> None:
    with pytest.raises(
        UserError, match=r"^(--set: )?decoder\.share: .*(greater than 0|less than or equal to 1|number)"
    ):
        make_tiny_config("c2fmae", f"decoder.share={value}")


def test_a_decoder_that_decodes_all_patches_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, *arguments: object) -> None:
            super().__init__()
            self.inner = joint(*arguments)

    joint = DECODERS.get("joint")
    monkeypatch.setitem(DECODERS._entries, "joint", Wrapped)
    message = (
        "decoder.share: decoder 'joint' always decodes all patches (expected 1, got 0.5). Remove the setting, or use a "
        "decoder that supports it, such as cascaded"
    )
    build_tiny_method("mae", "decoder.share=1")
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        build_tiny_method("mae", "decoder.share=0.5")


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_the_cost_is_that_of_the_decoded_patches(decoder: str) -> None:
    costs = {}
    for share in (1, 0.5):
        overrides = ["encoder.depth=1", f"decoder={{name: {decoder}, share: {share}}}"]
        config = make_tiny_config("c2fmae", *overrides, size=(64, 64))
        costs[share] = compute_pretraining_cost(config)
        text = {row.name: (row.description, row.shape) for row in describe_architecture(config)}
        assert ("for 0.5 of the patches" in text["decoder"][0]) == (share == 0.5)
        assert text["decoder"][1] == f"{round(48 * share)} × {64 if decoder == 'direct' else 256}"
    full, half = (costs[share].part_costs for share in (1, 0.5))
    assert half["heads"].flops * 2 == full["heads"].flops
    assert half["decoder"].flops < full["decoder"].flops or decoder == "direct"
    assert half["encoder"] == full["encoder"]
    assert half["decoder"].parameters == full["decoder"].parameters


def test_a_step_is_replayed_with_its_selection(tmp_path: Path) -> None:
    settings = ["training.steps=2", "training.warmup_steps=1", "training.precision=fp32", "method.decoder.share=0.25"]
    data = ["data.train.options={size: 64, length: 16, difficulty: easy}", "data.held_out=null", "watching.figures=0"]
    config = load_recipe("c2fmae-debug", [*settings, *data, "saving.steps=1"])
    pretrain(config, tmp_path / "run")
    row = list(read_rows(RunDir(tmp_path / "run").metrics))[-1]
    expected = ", ".join(f"{name} {row[f'loss/{name}']:.4g}" for name in COARSE_TO_FINE)
    assert replay_step(load_recipe(str(tmp_path / "run")), tmp_path / "run", 2).splitlines()[1] == f"losses: {expected}"


@pytest.mark.compile
def test_a_compiled_step_has_the_same_gradients() -> None:
    method = build("c2fmae", "granularities=[semantic, rgb]", "decoder.options.depth=0")
    (part,) = split_batch(method)
    loss = partial(method.compute_loss, maps=part.maps, masks=part.masks, counts=dict(part.counts))
    method.model(part.maps, part.masks, loss).total.backward()
    expected = {key: grad.clone() for key, grad in named_gradients(method) if grad is not None}
    method.model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(method.model, fullgraph=True, backend="aot_eager")
    compiled(part.maps, part.masks, loss).total.backward()
    for key, grad in named_gradients(method):
        torch.testing.assert_close(grad, expected[key], atol=1e-12, rtol=1e-10)


def test_other_sizes_decode_the_same_share() -> None:
    method = build_method(make_tiny_config("mae", "decoder.share=0.5", size=(64, 64)))
    masks = method.masking.sample(
        draw_noise_scenes(2, (64, 96)), progress=0, generator=RowGenerator(0), decodes_all=False
    )
    assert list_decoded(masks).shape == (2, 1, 12)
