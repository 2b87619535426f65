"""Properties of the masking primitives."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.masking import compute_quotas, instance_mask, random_mask, select_instances, semantic_mask, top_k_mask
from tests.masking import reference
from tests.masking.strategies import MaskInputs, mask_inputs, masked_sets

pytestmark = pytest.mark.numeric

CLASS_WEIGHTS = [0, 2, 1, *[1] * 16, 5]
OBJECT_SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]


def instance_mask_half_on_objects(ids: Tensor, noise: Tensor, num_masked: Tensor) -> Tensor:
    return instance_mask(ids, noise, num_masked, object_share=0.5)


def weighted_semantic_mask(ids: Tensor, noise: Tensor, num_masked: Tensor) -> Tensor:
    return semantic_mask(ids, noise, num_masked, weights=torch.tensor(CLASS_WEIGHTS + [1] * 236))


def unguided_mask(ids: Tensor, noise: Tensor, num_masked: Tensor) -> Tensor:
    return random_mask(noise, num_masked)


def top_k_mask_by_id(ids: Tensor, noise: Tensor, num_masked: Tensor) -> Tensor:
    return top_k_mask(ids.float(), num_masked, noise)


MaskFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
EACH_MASK = pytest.mark.parametrize(
    "mask", [semantic_mask, weighted_semantic_mask, instance_mask_half_on_objects, unguided_mask, top_k_mask_by_id]
)


@EACH_MASK
@given(row=mask_inputs())
def test_exactly_the_budget_is_hidden(mask: MaskFunction, row: MaskInputs) -> None:
    is_masked = mask(*row)
    assert is_masked.dtype == torch.bool
    assert torch.equal(is_masked.sum(dim=1), row.num_masked)


@EACH_MASK
@given(row=mask_inputs())
def test_rows_of_a_batch_are_independent(mask: MaskFunction, row: MaskInputs) -> None:
    alone = [mask(*(tensor[i : i + 1] for tensor in row)) for i in range(len(row.ids))]
    assert torch.equal(mask(*row), torch.cat(alone))


@EACH_MASK
@given(row=mask_inputs(distinct_noise=True), seed=st.integers(0, 2**32))
def test_permuting_the_patches_permutes_the_mask(mask: MaskFunction, row: MaskInputs, seed: int) -> None:
    shuffle = torch.randperm(row.ids.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = mask(row.ids[:, shuffle], row.noise[:, shuffle], row.num_masked)
    assert torch.equal(moved, mask(*row)[:, shuffle])


@EACH_MASK
@given(row=mask_inputs())
def test_inputs_are_not_modified_and_results_are_deterministic(mask: MaskFunction, row: MaskInputs) -> None:
    before = [tensor.clone() for tensor in row]
    state = torch.get_rng_state()
    assert torch.equal(mask(*row), mask(*row))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(old, new) for old, new in zip(before, row, strict=True))


@EACH_MASK
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_of_any_floating_point_dtype_gives_the_same_mask(mask: MaskFunction, dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1, 255, 2, 2]])
    noise = torch.tensor([[0.5, -0.25, 0.0, -0.0, 0.0, 1.0, -1.0, 0.25]])  # exact in every dtype
    expected = mask(ids, noise, torch.tensor([4]))
    assert torch.equal(mask(ids, noise.to(dtype), torch.tensor([4])), expected)


@given(mask_inputs())
def test_random_mask_hides_the_highest_noise(row: MaskInputs) -> None:
    expected = [
        reference.hide_highest(range(len(noise)), noise, count)
        for noise, count in zip(row.noise.tolist(), row.num_masked.tolist(), strict=True)
    ]
    assert masked_sets(random_mask(row.noise, row.num_masked)) == expected


@given(mask_inputs(), st.integers(0, 2**32))
def test_top_k_hides_the_highest_scores_and_breaks_ties_by_noise(row: MaskInputs, seed: int) -> None:
    levels = torch.randint(-2, 3, row.noise.shape, generator=torch.Generator().manual_seed(seed)) / 2
    for scores in (levels, levels.double()):
        expected = [
            reference.top_k_mask(s.tolist(), n.tolist(), int(k)) for s, n, k in zip(scores, *row[1:], strict=True)
        ]
        assert masked_sets(top_k_mask(scores, row.num_masked, row.noise)) == expected


@given(mask_inputs(), st.sampled_from([None, CLASS_WEIGHTS]), st.sampled_from([255, 19, 0]))
def test_semantic_mask_equals_the_naive_loop(row: MaskInputs, weights: list[int] | None, ignore: int) -> None:
    ids = torch.where(row.ids == 255, ignore, row.ids)
    is_masked = semantic_mask(
        ids, row.noise, row.num_masked, weights=None if weights is None else torch.tensor(weights), ignore=ignore
    )
    expected = [
        reference.semantic_mask(i.tolist(), n.tolist(), int(k), weights, ignore)
        for i, n, k in zip(ids, row.noise, row.num_masked, strict=True)
    ]
    assert masked_sets(is_masked) == expected


@given(mask_inputs())
def test_scaled_real_class_weights_equal_integer_weights(row: MaskInputs) -> None:
    weights = torch.tensor(CLASS_WEIGHTS)
    ids = torch.where(row.ids == 255, 0, row.ids)
    # A common factor has no effect, because there is no ignore region, whose weight is always 1.
    thirds = semantic_mask(ids, row.noise, row.num_masked, weights=weights.double() / 3)
    assert torch.equal(thirds, semantic_mask(ids, row.noise, row.num_masked, weights=weights))


@given(mask_inputs(), st.sampled_from([None, CLASS_WEIGHTS]))
def test_every_region_gets_its_quota_within_one_patch(row: MaskInputs, weights: list[int] | None) -> None:
    is_masked = semantic_mask(*row, weights=None if weights is None else torch.tensor(weights))
    for ids, hidden, budget in zip(row.ids, is_masked, row.num_masked, strict=True):
        regions = ids.unique()
        sizes = torch.stack([(ids == region).sum() for region in regions])
        class_weights = torch.tensor([1 if weights is None or r == 255 else weights[r] for r in regions.tolist()])
        expected = compute_quotas((class_weights * sizes)[None], budget[None], sizes[None])[0]
        got = torch.stack([hidden[ids == region].sum() for region in regions])
        assert ((got - expected).abs() < 1).all()


def test_a_class_of_weight_zero_stays_visible_while_others_can_be_hidden() -> None:
    ids, noise = torch.tensor([[0] * 6 + [1] * 4]), torch.rand(1, 10, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.0, 1.0])
    assert semantic_mask(ids, noise, torch.tensor([4]), weights=weights)[0].tolist() == [False] * 6 + [True] * 4
    assert semantic_mask(ids, noise, torch.tensor([7]), weights=weights)[0, :6].sum() == 3


@given(mask_inputs(ids=(0, 1, 2, 255)), st.sampled_from(OBJECT_SHARES))
def test_instance_mask_equals_the_naive_loop(row: MaskInputs, object_share: float) -> None:
    is_masked = instance_mask(*row, object_share=object_share)
    expected = [
        reference.instance_mask(i.tolist(), n.tolist(), int(k), Fraction(object_share), 255)
        for i, n, k in zip(*row, strict=True)
    ]
    assert masked_sets(is_masked) == expected


@pytest.mark.parametrize("only_id", [0, 255, 3])
def test_an_image_of_only_objects_or_only_background_is_masked_uniformly(only_id: int) -> None:
    noise = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    budget = torch.tensor([0, 13, 20])
    is_masked = instance_mask(torch.full((3, 20), only_id), noise, budget, object_share=0.75)
    assert torch.equal(is_masked, random_mask(noise, budget))


def test_each_image_may_have_its_own_object_share() -> None:
    ids = torch.tensor([[0] * 10 + [1] * 10]).expand(3, -1)
    noise = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    is_masked = instance_mask(ids, noise, torch.full((3,), 8), object_share=torch.tensor([0.0, 0.5, 1.0]))
    assert is_masked[:, 10:].sum(dim=1).tolist() == [0, 4, 8]


def test_patches_of_a_region_are_chosen_uniformly() -> None:
    draws = 20_000
    ids = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 255, 255]).expand(draws, -1)
    noise = torch.rand(draws, 12, generator=torch.Generator().manual_seed(5))
    budget = torch.full((draws,), 6)
    for is_masked, expected_rates in (
        (semantic_mask(ids, noise, budget), [0.5] * 12),
        (instance_mask(ids, noise, budget, object_share=0.5), [3 / 8] * 6 + [3 / 4] * 4 + [3 / 8] * 2),
        (random_mask(noise, budget), [0.5] * 12),
    ):
        # Five standard errors of `draws` coin tosses.
        rates = is_masked.float().mean(dim=0)
        torch.testing.assert_close(rates, torch.tensor(expected_rates), atol=5 * 0.5 / draws**0.5, rtol=0)


def test_pairs_of_patches_of_a_region_are_hidden_at_the_rate_of_sampling_without_replacement() -> None:
    draws = 20_000
    ids = torch.tensor([4] * 6 + [9] * 6).expand(draws, -1)
    noise = torch.rand(draws, 12, generator=torch.Generator().manual_seed(6))
    is_masked = semantic_mask(ids, noise, torch.full((draws,), 6))[:, :6].double()
    together = is_masked.T @ is_masked / draws  # 3 of 6 without replacement: a pair in 1/2 · 2/5
    expected = torch.full((6, 6), 0.2, dtype=torch.float64).fill_diagonal_(0.5)
    torch.testing.assert_close(together, expected, atol=5 * 0.5 / draws**0.5, rtol=0)


VALID_INPUTS = {
    "ids": torch.zeros(2, 6, dtype=torch.long),
    "noise": torch.rand(2, 6),
    "num_masked": torch.tensor([1, 6]),
}


@EACH_MASK
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_masked": torch.tensor([1, 7])}, "num_masked: expected at most 6, the number of patches, got 7"),
        ({"num_masked": torch.tensor([-1, 6])}, "num_masked: expected at least 0, got -1"),
    ],
)
def test_budgets_out_of_range_are_rejected(mask: MaskFunction, changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        mask(*(VALID_INPUTS | changed).values())


@EACH_MASK
def test_a_grid_without_patches_is_rejected(mask: MaskFunction) -> None:
    empty = (torch.zeros(2, 0, dtype=torch.long), torch.rand(2, 0), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r": expected \[batch, patch\] with at least 1 patch, got shape \[2, 0\]$"):
        mask(*empty)


@EACH_MASK
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_that_has_no_order_is_rejected(mask: MaskFunction, dtype: torch.dtype) -> None:
    noise = VALID_INPUTS["noise"].to(dtype, copy=True)
    noise[1, 2] = torch.nan
    with pytest.raises(ValueError, match="^noise: expected numbers, got NaN$"):
        mask(*(VALID_INPUTS | {"noise": noise}).values())
    with pytest.raises(ValueError, match="^scores: expected numbers, got NaN$"):
        top_k_mask(noise, VALID_INPUTS["num_masked"], VALID_INPUTS["noise"])


@EACH_MASK
@pytest.mark.parametrize(
    "changed",
    [
        {"num_masked": torch.tensor([1, 2, 3])},
        {"num_masked": torch.tensor([1.0, 2.0])},
        {"num_masked": torch.tensor(3)},
        {"noise": torch.rand(2, 6, 1)},
        {"noise": torch.zeros(2, 6, dtype=torch.long)},
    ],
)
def test_wrong_shapes_and_dtypes_are_rejected(mask: MaskFunction, changed: dict[str, Tensor]) -> None:
    # In the run with shape checks, jaxtyping raises a TypeError first.
    with pytest.raises((ValueError, TypeError), match=r"num_masked|noise|parameter"):
        mask(*(VALID_INPUTS | changed).values())


@pytest.mark.parametrize("object_share", [-0.1, 1.1, float("nan")])
def test_an_object_share_outside_zero_to_one_is_rejected(object_share: float) -> None:
    with pytest.raises(ValueError, match=r"^object_share: expected a number in \[0, 1\], got"):
        instance_mask(*VALID_INPUTS.values(), object_share=object_share)
    with pytest.raises(ValueError, match=r"^object_share: expected numbers in \[0, 1\], got"):
        instance_mask(*VALID_INPUTS.values(), object_share=torch.tensor([0.5, object_share]))


@pytest.mark.parametrize("mask", [semantic_mask, lambda *row: select_instances(row[0], 1, grid=(2, 3))])
def test_ids_that_do_not_fit_32_bits_are_rejected(mask: MaskFunction) -> None:
    ids = torch.tensor([[0, 2**40, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="expected ids of 32 bits, got 0 to 1099511627776$"):
        mask(ids, torch.rand(1, 6), torch.tensor([1]))


@pytest.mark.parametrize("weights", [torch.ones(0), torch.ones(3, dtype=torch.bool), torch.ones(2, 3)])
def test_class_weights_of_wrong_shape_or_dtype_are_rejected(weights: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match=r"weights: expected one number per class|parameter"):
        semantic_mask(torch.tensor([[0, 1]]), torch.rand(1, 2), torch.tensor([1]), weights=weights)


def test_an_id_without_a_class_weight_is_rejected() -> None:
    with pytest.raises(ValueError, match="^regions: expected ids from 0 to 2, as there are 3 weights, or 255$"):
        semantic_mask(torch.tensor([[0, 3]]), torch.rand(1, 2), torch.tensor([1]), weights=torch.ones(3))
