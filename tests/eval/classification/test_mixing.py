"""Mixup and CutMix of neighbours: what is mixed, by how much, and what is then to be predicted."""

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


def draws(config: MixingConfig, count: int = 2000, cells: tuple[int, int] = (8, 12)) -> list[MixParams]:
    return [sample_mix_params(config, cells, np.random.default_rng(seed)) for seed in range(count)]


def photos(count: int = 6, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


@given(st.integers(0, 40))
def test_neighbours_are_pairs_that_stay_together_in_any_even_part(count: int) -> None:
    who = pair_samples(count)
    assert who[who].tolist() == list(range(count))
    assert [int(n) for n in who] == [i ^ 1 if i ^ 1 < count else i for i in range(count)]


@given(st.integers(0, 40), st.integers(1, 4))
def test_views_of_one_photo_are_mixed_with_another_photo_s(count: int, views: int) -> None:
    who, photo = pair_samples(count, views), torch.arange(count) // views
    assert who[who].tolist() == list(range(count))
    paired = who != torch.arange(count)
    assert (photo[who][paired] != photo[paired]).all()
    assert int((~paired).sum()) <= 2 * views


def test_blended_photos_are_so_much_of_one_and_the_rest_of_the_other() -> None:
    given_, mix = photos(), MixParams(0.3)
    for row, other in enumerate([1, 0, 3, 2, 5, 4]):
        expected = 0.3 * given_[row] + 0.7 * given_[other]
        torch.testing.assert_close(mix_map("rgb", given_, mix, (8, 12), pair_samples(6))[row], expected)


def test_blended_ids_are_those_of_whoever_has_more_of_the_image() -> None:
    ids = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 2, 3)
    assert mix_map("semantic", ids, MixParams(0.5), (2, 3), pair_samples(4))[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert mix_map("semantic", ids, MixParams(0.49), (2, 3), pair_samples(4))[:, 0, 0].tolist() == [1, 0, 3, 2]


def test_a_box_is_the_neighbours_and_the_rest_ones_own_in_photo_and_maps_alike() -> None:
    ids = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 4, 6)
    rgb = ids.float().repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).expand(4, 3, 8, 12)
    mix = MixParams(1 - 4 / 24, (1, 3, 2, 4))
    cut = mix_map("instance", ids, mix, (4, 6), pair_samples(4))
    expected = ids.clone()
    expected[:, 1:3, 2:4] = torch.tensor([1, 0, 3, 2], dtype=torch.uint8).view(4, 1, 1)
    assert torch.equal(cut, expected)
    wide = mix_map("rgb", rgb, mix, (4, 6), pair_samples(4))
    assert torch.equal(wide[:, 0, ::2, ::2], expected.float())
    assert (cut[0] == 1).double().mean().item() == pytest.approx(1 - mix.lam)


@pytest.mark.parametrize("mix", [MixParams(0.3), MixParams(0.75, (0, 4, 0, 6)), MixParams()])
def test_nothing_that_is_given_is_written_to(mix: MixParams) -> None:
    given_ = photos()
    kept = given_.clone()
    mix_map("rgb", given_, mix, (8, 12), pair_samples(6))
    assert torch.equal(given_, kept)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.0])
def test_targets_are_timms(share: float, smoothing: float) -> None:
    """timm mixes with the row's mirror image; rows are laid out so that this is the neighbour."""
    labels = torch.tensor([3, 0, 4, 1, 1, 2])
    ours = mix_targets(labels, 5, lam=share, smoothing=smoothing, partners=pair_samples(6))
    mirrored = torch.tensor([3, 4, 1, 2, 1, 0])  # row i and row 5 - i are neighbours 2i and 2i + 1 above
    theirs = mixup_target(mirrored, num_classes=5, lam=share, smoothing=smoothing)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, theirs[[0, 5, 1, 4, 2, 3]])
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(6))


def test_the_share_of_a_box_is_what_it_leaves() -> None:
    for mix in draws(MixingConfig(mixup=0)):
        assert mix.box is not None
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 8
        assert 0 <= left <= right <= 12
        assert mix.lam == pytest.approx(1 - (bottom - top) * (right - left) / 96)


def test_how_often_what_is_done_and_how_far() -> None:
    """The mean share of a beta distribution is a half; of α = 0.8 its variance is 1 / (4 (2 α + 1)) = 0.096."""
    both = draws(MixingConfig())
    cut = [mix for mix in both if mix.box]
    assert len(cut) / len(both) == pytest.approx(0.5, abs=0.04)
    blended = np.array([mix.lam for mix in both if not mix.box])
    assert blended.mean() == pytest.approx(0.5, abs=0.03)
    assert blended.var() == pytest.approx(0.096, abs=0.01)
    often = draws(MixingConfig(chance=0.25))
    assert sum(mix != MixParams() for mix in often) / len(often) == pytest.approx(0.25, abs=0.03)
    assert set(draws(MixingConfig(mixup=0, cutmix=0))) == {MixParams()}
    assert not any(mix.box for mix in draws(MixingConfig(cutmix=0), 50))
