"""The three blends: how many patches they take from each mask, and the hard switch of the top-k blend."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.masking import apportion, blend_scores, quota_mask, random_mask, sample_mask, top_k_mask

pytestmark = pytest.mark.numeric


class MaskTriple(NamedTuple):
    """Three independent masks that hide the same number of patches in each row."""

    semantic: Tensor
    instance: Tensor
    random: Tensor


class Case(NamedTuple):
    """Three masks, their budgets, noise for ties, and a number per image for `sample_mask`."""

    masks: MaskTriple
    num_masked: Tensor
    noise: Tensor
    u: Tensor


def make_triple(masks: Tensor) -> MaskTriple:
    return MaskTriple(masks[0], masks[1], masks[2])


@st.composite
def blend_cases(draw: st.DrawFn) -> Case:
    batch, patches = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 7, 40, 196]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    budgets = st.one_of(st.just(0), st.just(patches), st.integers(0, patches))
    num_masked = torch.tensor([draw(budgets) for _ in range(batch)])
    noise = torch.rand(4, batch, patches, generator=generator)
    masks = make_triple(noise[:3].argsort(dim=2).argsort(dim=2) < num_masked.unsqueeze(1))
    return Case(masks, num_masked, noise[3], torch.rand(batch, generator=generator))


COEFFICIENT = st.one_of(st.sampled_from([0.0, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 1.0]), st.floats(0, 1))


@given(blend_cases(), COEFFICIENT, COEFFICIENT)
def test_every_blend_hides_exactly_the_budget(case: Case, alpha: float, beta: float) -> None:
    assume(alpha + beta <= 1)
    for is_masked in (
        top_k_mask(blend_scores(*case.masks, alpha, beta), case.num_masked, case.noise),
        sample_mask(*case.masks, alpha, beta, case.u),
        quota_mask(*case.masks, alpha, beta, case.noise),
    ):
        assert torch.equal(is_masked.sum(dim=1), case.num_masked)


@given(blend_cases(), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]))
def test_a_coefficient_of_one_gives_the_pure_mask(case: Case, pair: tuple[float, float]) -> None:
    pure = case.masks[{(1.0, 0.0): 0, (0.0, 1.0): 1, (0.0, 0.0): 2}[pair]]
    assert torch.equal(top_k_mask(blend_scores(*case.masks, *pair), case.num_masked, case.noise), pure)
    assert torch.equal(sample_mask(*case.masks, *pair, case.u), pure)
    assert torch.equal(quota_mask(*case.masks, *pair, case.noise), pure)


@given(blend_cases(), st.floats(0.5, 1, exclude_min=True), st.floats(0, 1), st.integers(0, 2))
def test_a_coefficient_above_half_is_a_hard_switch(case: Case, lead: float, split: float, leader: int) -> None:
    low, high = (1 - lead) * split, (1 - lead) * (1 - split)
    alpha, beta = ((lead, low), (low, lead), (low, high))[leader]
    assume(leader < 2 or 1 - alpha - beta > 0.5)
    is_masked = top_k_mask(blend_scores(*case.masks, alpha, beta), case.num_masked, case.noise)
    assert torch.equal(is_masked, case.masks[leader])


def test_top_k_blends_two_masks_with_coefficients_of_one_half() -> None:
    noise = torch.rand(3, 200, 196, generator=torch.Generator().manual_seed(0))
    budget = torch.full((200,), 120)
    semantic, instance = random_mask(noise[0], budget), random_mask(noise[1], budget)
    is_masked = top_k_mask(blend_scores(semantic, instance, semantic, 0.5, 0.5), budget, noise[2])
    both = semantic & instance
    assert (is_masked & both).sum() == both.sum()  # patches hidden by both masks come first …
    overlaps = [(is_masked & mask).sum() / is_masked.sum() for mask in (semantic, instance)]
    assert all(0.75 < overlap < 0.85 for overlap in overlaps)  # … and the rest are drawn from either


def test_equal_coefficients_give_equal_scores() -> None:
    on, off = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    for alpha, beta in ((1 / 3, 1 / 3), (0.4, 0.3)):
        instance, random = blend_scores(off, on, off, alpha, beta), blend_scores(off, off, on, alpha, beta)
        assert instance == random  # although 1 - 0.4 - 0.3 is not 0.3


@given(blend_cases(), COEFFICIENT, COEFFICIENT)
def test_quota_takes_its_fraction_of_each_mask_within_one_patch(case: Case, alpha: float, beta: float) -> None:
    assume(alpha + beta <= 1)
    # The masks hide disjoint parts of 3 × N patches, so every hidden patch identifies its mask.
    batch, patches = case.noise.shape
    masks = torch.zeros(3, batch, 3, patches, dtype=torch.bool)
    for index in range(3):
        masks[index, :, index] = case.masks[0]
    noise = torch.rand(batch, 3 * patches, generator=torch.Generator().manual_seed(0))
    is_masked = quota_mask(*make_triple(masks.flatten(2)), alpha, beta, noise)
    num_taken = is_masked.view(batch, 3, patches).sum(dim=2)
    expected = torch.tensor([alpha, beta, max(0.0, 1 - alpha - beta)]) * case.num_masked.unsqueeze(1)
    assert ((num_taken - expected).abs() < 1 + 1e-4).all()
    assert torch.equal(
        num_taken,
        apportion(
            torch.tensor([[alpha, beta, max(0.0, 1 - alpha - beta)]], dtype=torch.float64).expand(batch, -1),
            case.num_masked,
            case.num_masked.unsqueeze(1).expand(-1, 3),
        ),
    )


@given(blend_cases(), COEFFICIENT, COEFFICIENT)
def test_quota_hides_only_patches_hidden_by_one_of_the_masks(case: Case, alpha: float, beta: float) -> None:
    assume(alpha + beta <= 1)
    is_masked = quota_mask(*case.masks, alpha, beta, case.noise)
    assert not (is_masked & ~(case.masks.semantic | case.masks.instance | case.masks.random)).any()


def test_quota_chooses_patches_of_a_mask_independently_of_the_other_masks() -> None:
    """Half of the patches from each of two masks that hide a fraction f: the first overlaps by ½ + ½ · f / (2 - f).

    The second half is drawn from the remaining patches of the instance mask, of which the semantic mask hides
    f / (2 - f). With the same order of noise for both halves the overlap would be far smaller.
    """
    noise = torch.rand(4, 400, 196, generator=torch.Generator().manual_seed(0))
    budget = torch.full((400,), 147)
    semantic, instance, random = (random_mask(mask_noise, budget) for mask_noise in noise[:3])
    is_masked = quota_mask(semantic, instance, random, 0.5, 0.5, noise[3])
    overlaps = [float((is_masked & mask).sum() / is_masked.sum()) for mask in (semantic, instance, random)]
    assert overlaps == [pytest.approx(overlap, abs=0.005) for overlap in (0.5 + 0.5 * 0.6, 0.5 + 0.5 * 0.75, 0.75)]


def test_sample_draws_each_mask_at_the_rate_of_its_coefficient() -> None:
    draws = 30_000
    masks = make_triple(torch.eye(3, dtype=torch.bool).unsqueeze(1).expand(-1, draws, -1))
    u = torch.rand(draws, generator=torch.Generator().manual_seed(2))
    rates = sample_mask(*masks, 0.2, 0.3, u).double().mean(dim=0)
    torch.testing.assert_close(rates, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), atol=0.015, rtol=0)


def test_each_image_may_have_its_own_coefficients() -> None:
    masks = make_triple(torch.eye(3, dtype=torch.bool).unsqueeze(1).expand(-1, 3, -1))
    alpha, beta = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    noise = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(3, dtype=torch.bool)
    assert torch.equal(sample_mask(*masks, alpha, beta, torch.full((3,), 0.5)), identity)
    assert torch.equal(quota_mask(*masks, alpha, beta, noise), identity)
    assert torch.equal(top_k_mask(blend_scores(*masks, alpha, beta), torch.ones(3, dtype=torch.long), noise), identity)


MASKS = make_triple(torch.eye(4, dtype=torch.bool).unsqueeze(1))


def test_coefficients_that_add_up_to_more_than_one_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"^alpha \+ beta: expected at most 1, got 1.1$"):
        blend_scores(*MASKS, 0.6, 0.5)
    with pytest.raises(ValueError, match=r"^alpha \+ beta: expected at most 1, got 1.1$"):
        sample_mask(*MASKS, 0.6, 0.5, torch.zeros(1))
    with pytest.raises(ValueError, match=r"^alpha \+ beta: expected at most 1, got 1.1$"):
        quota_mask(*MASKS, torch.tensor([0.6]), torch.tensor([0.5]), torch.zeros(1, 4))


def test_a_coefficient_outside_zero_to_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"^beta: expected a number in \[0, 1\], got -0.5$"):
        blend_scores(*MASKS, 0.6, -0.5)


def test_quota_rejects_masks_with_different_numbers_of_hidden_patches() -> None:
    with pytest.raises(ValueError, match="expected masks that hide the same number of patches in each row"):
        quota_mask(MASKS[0], ~MASKS[1], MASKS[2], 0.5, 0.5, torch.zeros(1, 4))


def test_masks_of_wrong_dtype_or_shape_are_rejected() -> None:
    with pytest.raises((ValueError, TypeError)):
        blend_scores(MASKS[0].float(), MASKS[1], MASKS[2], 0.5, 0.5)
    with pytest.raises((ValueError, TypeError)):
        blend_scores(MASKS[0][:, :3], MASKS[1], MASKS[2], 0.5, 0.5)
