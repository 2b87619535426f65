"""ConMIM: patches find themselves among those of their image, and norms are over groups of images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.config.data import DataConfig
from c2fmae.core.errors import UserError
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.data.generated import GeneratedScenes
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods import METHODS
from c2fmae.methods.branches import conmim
from c2fmae.methods.branches.conmim import ConMIM
from c2fmae.methods.branches.model import BranchModel
from tests.methods.tiny_branches import BATCH, make_method, perturb_teacher, split_batch, standardise_in_float64


@pytest.fixture(autouse=True)
def _float64_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise_in_float64)


def project_like_the_paper(model: BranchModel, tokens: Tensor) -> Tensor:
    """Return the projections of a group's patches by an MLP with torch's batch norms, over the class tokens too."""
    head = nn.Sequential(
        nn.Linear(64, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 8, bias=False),
        nn.BatchNorm1d(8, affine=False),
    ).double()
    missing, unexpected = head.load_state_dict(model.heads["projector"].state_dict(), strict=False)
    assert unexpected == []
    assert all("running" in name or "num_batches" in name for name in missing)
    return head(tokens.flatten(0, 1)).view(*tokens.shape[:2], -1)[:, 1:]  # type: ignore[no-any-return]


def test_hidden_patches_find_themselves_among_the_teachers_patches_of_their_image() -> None:
    method = make_method("conmim", "group=4")
    teacher, model = perturb_teacher(method), method.model
    part = split_batch(method)
    is_masked = part.masks["main"]
    tokens = model.compute_latents(part.images("main"), is_masked=is_masked)
    targets = teacher.encode(part.images("target"))
    expected, correct = [], []
    for first in (0, 4):
        group = slice(first, first + 4)
        queries = F.normalize(project_like_the_paper(model, tokens[group]), dim=2)
        keys = F.normalize(project_like_the_paper(teacher, targets[group]), dim=2)
        for image in range(4):
            places = is_masked[first + image].nonzero()[:, 0]
            logits = queries[image, places] @ keys[image].T / 0.1
            expected.append(F.cross_entropy(logits, places))
            correct.append((logits.argmax(dim=1) == places).float().mean())
    found = method.compute_losses(model, part)
    torch.testing.assert_close(found.losses["contrast"], torch.stack(expected))
    torch.testing.assert_close(found.values["contrast_accuracy"], torch.stack(correct))


def test_hidden_patches_do_not_reach_the_student() -> None:
    method = make_method("conmim")
    part = split_batch(method)
    pixels = part.masks["main"].unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None, None]
    images = part.views["main"]
    losses = []
    for changed in (images, torch.where(pixels, images.flip(0), images), torch.where(pixels, images, images.flip(0))):
        views = {**part.views, "main": changed}
        losses.append(method.compute_losses(method.model, replace(part, views=views)).losses["contrast"])
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_units_of_four_patches_are_hidden() -> None:
    is_masked = ConMIM.draw_masks(METHODS.get("conmim")(), (14, 14), range(5), RowGenerator(5))["main"]
    assert is_masked.sum(dim=1).tolist() == [4 * 37] * 5
    units = is_masked.unflatten(1, (7, 2, 7, 2))
    assert torch.equal(units.any(dim=4).any(dim=2), units.all(dim=4).all(dim=2))


def test_the_teacher_sees_the_same_crop_in_other_colours() -> None:
    colours = ["jitter_chance=1", "solarise_chance=0"]  # solarisation changes the order of brightness
    method = make_method("conmim", *(f"views.target.colour.{colour}" for colour in colours))
    scenes = GeneratedScenes(size=64, length=8)
    view, correlations = method.training_view(DataConfig(), (32, 32)), []
    for index in range(len(scenes)):
        sample = view(scenes[index], np.random.default_rng(index))
        main, target = sample.maps["rgb"].double(), sample.views["target"][0].double()
        assert not torch.equal(main, target)
        means = torch.stack([F.avg_pool2d(image, 8).mean(dim=0).flatten() for image in (main, target)])
        correlations.append(means.corrcoef()[0, 1].item())
    assert min(correlations) > 0.9
    with pytest.raises(UserError, match=r"views\.target\.crop: conmim compares patches at the same places"):
        make_method("conmim", "views.target.crop=own")


def test_initial_blocks_add_little_to_the_residual_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = make_method("conmim", "layer_scale=0.3").model
    monkeypatch.setattr(conmim, "rescale_residual_outputs", lambda blocks: None)
    plain = dict(make_method("conmim").model.named_parameters())
    divisors = {"attn.proj.weight": 2**0.5, "mlp.fc2.weight": 2**0.5}
    for name, value in scaled.named_parameters():
        _, _, rest = name.partition("blocks.")
        number, _, layer = rest.partition(".")
        if layer.endswith("gamma"):
            assert (value == torch.tensor(0.3).double()).all()
        else:
            divisor = divisors.get(layer, 1) * (int(number) + 1) ** 0.5 if layer in divisors else 1
            torch.testing.assert_close(value * divisor, plain[name], atol=1e-7, rtol=1e-6, msg=name)
    assert (plain["encoder.blocks.1.ls2.gamma"] == torch.tensor(0.1).double()).all()


@pytest.mark.parametrize(
    ("group", "micro_batch", "size"), [(3, None, 8), (32, None, 8), (4, 2, 2)], ids=["uneven", "large", "micro"]
)
def test_groups_that_are_divided_are_rejected_before_the_first_step(
    group: int, micro_batch: int | None, size: int
) -> None:
    method = make_method("conmim", f"group={group}")
    config = TrainingConfig(steps=4, batch_size=BATCH, micro_batch=micro_batch, lr=1e-3)
    plan = plan_training(config, num_samples=16, world_size=1)
    with pytest.raises(UserError, match=rf"method\.group: expected a divisor of the {size} images of a micro-batch"):
        method.build_task(plan, seed=0)
    halves = plan_training(TrainingConfig(steps=4, batch_size=BATCH, lr=1e-3), num_samples=16, world_size=2)
    with pytest.raises(UserError, match=r"method\.group: expected a divisor of the 4 images"):
        make_method("conmim", "group=8").build_task(halves, seed=0)
