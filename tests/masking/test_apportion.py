from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.masking import apportion, compute_quotas, sample_shares
from tests.masking import reference

pytestmark = pytest.mark.numeric

WEIGHT = st.sampled_from([0, 0, 1, 1, 2, 3, 5, 17, 196, 10**6])
BINS = st.integers(1, 9).flatmap(
    lambda k: st.tuples(st.lists(WEIGHT, min_size=k, max_size=k), st.lists(st.integers(0, 12), min_size=k, max_size=k))
)


@given(BINS, st.integers(0, 120))
def test_integer_weights_match_exact_fractions(bins: tuple[list[int], list[int]], total: int) -> None:
    weights, capacity = bins
    share = apportion(torch.tensor([weights]), torch.tensor([total]), torch.tensor([capacity]))
    assert share.dtype == torch.int64
    assert share[0].tolist() == reference.apportion(weights, total, capacity)


@given(BINS, st.integers(0, 120), st.sampled_from([1.0, 0.1, 1 / 3, 1e-300, 1e300]))
def test_real_weights_give_the_same_shares_on_any_scale(
    bins: tuple[list[int], list[int]], total: int, scale: float
) -> None:
    weights, capacity = bins
    real = torch.tensor([weights], dtype=torch.float64) * scale
    share = apportion(real, torch.tensor([total]), torch.tensor([capacity]))
    assert share[0].tolist() == reference.apportion(weights, total, capacity)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40), st.integers(0, 300), st.integers(0, 12))
def test_shares_of_real_weights_are_within_one_of_their_quotas(weights: list[float], total: int, capacity: int) -> None:
    capacities = torch.full((1, len(weights)), capacity)
    share = apportion(torch.tensor([weights], dtype=torch.float64), torch.tensor([total]), capacities)
    quota = compute_quotas(torch.tensor([weights], dtype=torch.float64), torch.tensor([total]), capacities)
    assert share.sum() == min(total, capacity * len(weights))
    assert ((share >= 0) & (share <= capacities)).all()
    assert ((share - quota).abs() < 1 + 1e-6).all()


@given(BINS, st.integers(0, 120))
def test_quotas_match_exact_fractions(bins: tuple[list[int], list[int]], total: int) -> None:
    weights, capacity = bins
    quota = compute_quotas(torch.tensor([weights]), torch.tensor([total]), torch.tensor([capacity]))
    torch.testing.assert_close(
        quota[0], torch.tensor([float(q) for q in reference.quotas(weights, total, capacity)], dtype=torch.float64)
    )


def test_rows_of_a_batch_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(0, 9, (64, 7), generator=generator)
    total, capacity = (
        torch.randint(0, 60, (64,), generator=generator),
        torch.randint(0, 12, (64, 7), generator=generator),
    )
    alone = torch.cat([apportion(weights[i : i + 1], total[i : i + 1], capacity[i : i + 1]) for i in range(64)])
    assert torch.equal(apportion(weights, total, capacity), alone)


def test_equal_remainders_go_to_the_lower_bin() -> None:
    share = apportion(torch.ones(1, 4), torch.tensor([6]), torch.full((1, 4), 9))
    assert share.tolist() == [[2, 2, 1, 1]]


def test_remainders_that_differ_by_rounding_errors_are_tied() -> None:
    weights = torch.tensor([[0.1 + 0.2, 0.3, 0.3 + 1e-15]], dtype=torch.float64)
    assert apportion(weights.flip(1), torch.tensor([1]), torch.full((1, 3), 5)).tolist() == [[1, 0, 0]]
    assert apportion(weights, torch.tensor([1]), torch.full((1, 3), 5)).tolist() == [[1, 0, 0]]


def test_remainders_that_differ_by_more_than_rounding_errors_are_not_tied() -> None:
    weights = torch.tensor([[1.0, 1.0 + 1e-7]], dtype=torch.float64)
    assert apportion(weights, torch.tensor([1]), torch.full((1, 2), 5)).tolist() == [[0, 1]]


def test_bins_of_weight_zero_get_only_the_excess_of_the_others() -> None:
    capacity = torch.tensor([[4, 6, 2]])
    assert apportion(torch.tensor([[0, 0, 1]]), torch.tensor([2]), capacity).tolist() == [[0, 0, 2]]
    assert apportion(torch.tensor([[0, 0, 1]]), torch.tensor([7]), capacity).tolist() == [[2, 3, 2]]
    assert apportion(torch.tensor([[0, 0, 0]]), torch.tensor([6]), capacity).tolist() == [[2, 3, 1]]


def test_zero_bins_are_rejected() -> None:
    with pytest.raises(ValueError, match="^weights: expected at least one bin$"):
        apportion(torch.ones(2, 0), torch.tensor([3, 0]), torch.ones(2, 0, dtype=torch.long))


@pytest.mark.parametrize(
    ("weights", "total", "capacity", "message"),
    [
        ([[1.0, -1.0]], [1], [[1, 1]], "weights: expected finite numbers of at least 0"),
        ([[1.0, float("nan")]], [1], [[1, 1]], "weights: expected finite numbers of at least 0"),
        ([[1.0, 1.0]], [-1], [[1, 1]], "total: expected at least 0, got -1"),
        ([[1.0, 1.0]], [1], [[1, -2]], "capacity: expected at least 0, got -2"),
    ],
)
def test_invalid_values_are_rejected(
    weights: list[list[float]], total: list[int], capacity: list[list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        apportion(torch.tensor(weights), torch.tensor(total), torch.tensor(capacity))


def test_shares_follow_the_dirichlet_distribution() -> None:
    concentration = torch.tensor([0.5, 1.0, 2.5])
    shares = sample_shares(40_000, concentration, generator=torch.Generator().manual_seed(3))
    mean, total = concentration / concentration.sum(), concentration.sum()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(40_000, dtype=torch.float64))
    torch.testing.assert_close(shares.mean(dim=0).float(), mean, atol=5e-3, rtol=0)
    torch.testing.assert_close(shares.var(dim=0).float(), mean * (1 - mean) / (total + 1), atol=2e-3, rtol=0)


def test_shares_of_tiny_concentrations_add_up_to_one() -> None:
    shares = sample_shares(500, torch.full((3,), 1e-4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(500, dtype=torch.float64))


def test_a_concentration_of_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match="^concentration: expected finite numbers above 0, got"):
        sample_shares(2, torch.tensor([1.0, 0.0]), generator=torch.Generator())


def test_the_naive_reference_agrees_with_a_hand_computed_case() -> None:
    # 10 over weights 3:2:1, where the first bin is full at 4: the other 6 are divided as 4:2.
    assert reference.apportion([3, 2, 1], 10, [4, 9, 9]) == [4, 4, 2]
    assert reference.quotas([1, 1, 1], 2, [9, 9, 9]) == [Fraction(2, 3)] * 3
