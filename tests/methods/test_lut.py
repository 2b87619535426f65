"""LUT: two disjoint sets of visible patches, and means that predict the teacher's means of the other view."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods import METHODS
from c2fmae.methods.branches.lut import LUT
from c2fmae.methods.branches.method import BranchMethod
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.autoencoder import encode_visible
from tests.methods.tiny_branches import BATCH, Run, make_method, perturb_teacher, split_batch, standardise_in_float64


@pytest.fixture(autouse=True)
def _float64_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise_in_float64)


def test_the_second_view_shows_the_next_patches_of_the_same_order() -> None:
    config, rows = METHODS.get("lut")(), range(3, 8)
    order = RowGenerator(5).draw_uniform(1, rows, 196).argsort(dim=1)
    masks = LUT.draw_masks(config, (14, 14), rows, RowGenerator(5))
    for name, ids in (("main", order[:, :49]), ("second", order[:, 49:98])):
        expected = torch.ones(5, 196, dtype=torch.bool).scatter(1, ids, False)
        assert torch.equal(masks[name], expected)
    whole = LUT.draw_masks(config, (14, 14), range(8), RowGenerator(5))
    assert all(torch.equal(whole[name][3:], mask) for name, mask in masks.items())


@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.9])
def test_no_patch_is_visible_in_both_views(ratio: float) -> None:
    config = METHODS.get("lut")().override([f"mask_ratio={ratio}"])
    masks = LUT.draw_masks(config, (6, 5), range(4), RowGenerator(0))
    assert (masks["main"] | masks["second"]).all()
    assert {int((~mask).sum(dim=1).unique()) for mask in masks.values()} == {int(30 * (1 - ratio) + 1e-9)}
    with pytest.raises(UserError, match=r"mask_ratio: .*greater than or equal to 0\.5"):
        METHODS.get("lut")().override(["mask_ratio=0.4"])


def compute_losses(method: BranchMethod, part: ViewBatch) -> dict[str, Tensor]:
    with torch.no_grad():
        return method.compute_losses(method.model, part).losses


def change(part: ViewBatch, name: str, *, is_masked: bool) -> ViewBatch:
    """Change the pixels of all hidden, or all visible, patches of a view."""
    patches = part.masks[name] if is_masked else ~part.masks[name]
    pixels = patches.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = torch.randn(part.views[name].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images = torch.where(pixels[:, None, None], part.views[name] + noise, part.views[name])
    return replace(part, views={**part.views, name: images})


def test_pixels_are_predicted_in_the_main_view_alone() -> None:
    method = make_method("lut")
    part = split_batch(method)
    losses = compute_losses(method, part)
    for is_masked in (True, False):
        changed = compute_losses(method, change(part, "second", is_masked=is_masked))
        assert torch.equal(changed["rgb"], losses["rgb"])
        assert torch.equal(changed["context"], losses["context"]) == is_masked


def test_hidden_patches_do_not_reach_the_student() -> None:
    method = make_method("lut")
    part = split_batch(method)
    losses, changed = compute_losses(method, part), compute_losses(method, change(part, "main", is_masked=True))
    assert torch.equal(changed["context"], losses["context"])
    assert (changed["rgb"] != losses["rgb"]).all()  # they are what is predicted
    visible = compute_losses(method, change(part, "main", is_masked=False))
    assert (visible["context"] != losses["context"]).all()


def test_means_of_visible_patches_predict_the_teachers_means_of_the_other_view() -> None:
    method = make_method("lut")
    teacher, model = perturb_teacher(method), method.model
    part = split_batch(method)
    assert part.targets.keys() == {"main", "second"}
    total = torch.zeros(BATCH, dtype=torch.float64)
    for own, other in (("main", "second"), ("second", "main")):
        num_visible = int((~part.masks[own][0]).sum())
        masks = Masks.from_mask(part.masks[own].unsqueeze(1), ["rgb"], num_visible=num_visible)
        patches = encode_visible(model.embeddings, model.encoder, {"rgb": part.images(own)}, masks)[0][:, 1:]
        student = model.heads["predictor"](model.heads["projector"](patches.mean(dim=1)))
        target = teacher.heads["projector"](teacher.encode(part.images(other))[:, 1:].mean(dim=1))
        total += (F.normalize(student, dim=1) - F.normalize(target, dim=1)).square().sum(dim=1) / 2
    torch.testing.assert_close(method.compute_losses(model, part).losses["context"], total)
    assert method.loss_weights == {"rgb": 1, "context": 0.25}


def test_heads_have_no_norms_and_biases_by_default() -> None:
    method = make_method("lut")
    for head in ("projector", "predictor"):
        shapes = {name: tuple(value.shape) for name, value in method.model.heads[head].named_parameters()}
        assert shapes == {"0.weight": (16, 64), "2.weight": (64, 16)}
    assert method.teacher is not None
    assert set(method.teacher.heads) == {"projector"}


def test_batch_norms_are_over_all_micro_batches() -> None:
    whole, parts = (Run.start("lut", "head_norm=batch", micro_batch=size) for size in (None, 2))
    assert parts.train() == pytest.approx(whole.train(), rel=0, abs=1e-9)
