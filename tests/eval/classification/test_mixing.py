"""Mixup and CutMix of neighbours: pairs, mixed maps, targets and the distribution of parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.mixup import mixup_target
from torch import Tensor

from c2fmae.eval.classification.config import MixingConfig
from c2fmae.eval.classification.mixing import MixParams, mix_map, mix_targets, pair_samples, sample_mix_params

pytestmark = pytest.mark.numeric


def draw_params(config: MixingConfig, count: int = 2000) -> list[MixParams]:
    return [sample_mix_params(config, (8, 12), np.random.default_rng(seed)) for seed in range(count)]


def draw_images() -> Tensor:
    return torch.randn(6, 3, 8, 12, generator=torch.Generator().manual_seed(6))


@given(st.integers(0, 40))
def test_samples_are_paired_with_their_neighbours(count: int) -> None:
    partners = pair_samples(count)
    assert partners[partners].tolist() == list(range(count))
    assert partners.tolist() == [i ^ 1 if i ^ 1 < count else i for i in range(count)]


@given(st.integers(0, 40), st.integers(1, 4))
def test_views_of_an_image_are_paired_with_those_of_another_image(count: int, views: int) -> None:
    partners, image = pair_samples(count, views), torch.arange(count) // views
    assert partners[partners].tolist() == list(range(count))
    is_paired = partners != torch.arange(count)
    assert (image[partners][is_paired] != image[is_paired]).all()
    assert int((~is_paired).sum()) <= 2 * views


def test_mixup_is_a_weighted_mean_of_images() -> None:
    images, mix = draw_images(), MixParams(0.3)
    for row, other in enumerate([1, 0, 3, 2, 5, 4]):
        expected = 0.3 * images[row] + 0.7 * images[other]
        torch.testing.assert_close(mix_map("rgb", images, mix, (8, 12), pair_samples(6))[row], expected)


def test_mixup_of_ids_takes_those_with_the_higher_weight() -> None:
    ids = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 2, 3)
    assert mix_map("semantic", ids, MixParams(0.5), (2, 3), pair_samples(4))[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert mix_map("semantic", ids, MixParams(0.49), (2, 3), pair_samples(4))[:, 0, 0].tolist() == [1, 0, 3, 2]


def test_cutmix_replaces_the_same_box_in_images_and_maps() -> None:
    ids = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 4, 6)
    rgb = ids.float().repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).expand(4, 3, 8, 12)
    mix = MixParams(1 - 4 / 24, (1, 3, 2, 4))
    mixed_ids = mix_map("instance", ids, mix, (4, 6), pair_samples(4))
    expected = ids.clone()
    expected[:, 1:3, 2:4] = torch.tensor([1, 0, 3, 2], dtype=torch.uint8).view(4, 1, 1)
    assert torch.equal(mixed_ids, expected)
    mixed_rgb = mix_map("rgb", rgb, mix, (4, 6), pair_samples(4))
    assert torch.equal(mixed_rgb[:, 0, ::2, ::2], expected.float())
    assert (mixed_ids[0] == 1).double().mean().item() == pytest.approx(1 - mix.lam)


@pytest.mark.parametrize("mix", [MixParams(0.3), MixParams(0.75, (0, 4, 0, 6)), MixParams()])
def test_mixing_does_not_modify_its_input(mix: MixParams) -> None:
    images = draw_images()
    original = images.clone()
    mix_map("rgb", images, mix, (8, 12), pair_samples(6))
    assert torch.equal(images, original)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lam", [1.0, 0.7, 0.0])
def test_targets_equal_timms(lam: float, smoothing: float) -> None:
    """timm mixes row i with row -1 - i, so the rows are ordered such that this is the neighbour."""
    labels = torch.tensor([3, 0, 4, 1, 1, 2])
    ours = mix_targets(labels, 5, lam=lam, smoothing=smoothing, partners=pair_samples(6))
    mirrored = torch.tensor([3, 4, 1, 2, 1, 0])  # row i and row 5 - i are neighbours 2i and 2i + 1 above
    theirs = mixup_target(mirrored, num_classes=5, lam=lam, smoothing=smoothing)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, theirs[[0, 5, 1, 4, 2, 3]])
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(6))


def test_the_weight_of_cutmix_is_the_area_outside_of_the_box() -> None:
    for mix in draw_params(MixingConfig(mixup=0)):
        assert mix.box is not None
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 8
        assert 0 <= left <= right <= 12
        assert mix.lam == pytest.approx(1 - (bottom - top) * (right - left) / 96)


def test_mixing_parameters_have_the_configured_distribution() -> None:
    """The mean of a symmetric beta distribution is 0.5; its variance for α = 0.8 is 1 / (4 (2 α + 1)) = 0.096."""
    both = draw_params(MixingConfig())
    cut = [mix for mix in both if mix.box]
    assert len(cut) / len(both) == pytest.approx(0.5, abs=0.04)
    blended = np.array([mix.lam for mix in both if not mix.box])
    assert blended.mean() == pytest.approx(0.5, abs=0.03)
    assert blended.var() == pytest.approx(0.096, abs=0.01)
    sometimes = draw_params(MixingConfig(chance=0.25))
    assert sum(mix != MixParams() for mix in sometimes) / len(sometimes) == pytest.approx(0.25, abs=0.03)
    assert set(draw_params(MixingConfig(mixup=0, cutmix=0))) == {MixParams()}
    assert not any(mix.box for mix in draw_params(MixingConfig(cutmix=0), 50))
