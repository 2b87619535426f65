import pytest
import torch

from c2fmae.masking.sorting import sort_rows, sort_rows_with_order

LIMIT = 1 << 57  # the first key that does not fit 64 bits together with an index below 2^6


@pytest.mark.parametrize("bounds", [(0, 3), (-(1 << 40), 1 << 40), (-LIMIT, LIMIT), (-(1 << 62), 1 << 62)])
def test_keys_of_any_size_are_sorted_with_equal_ones_in_order(bounds: tuple[int, int]) -> None:
    keys = torch.randint(*bounds, (5, 40), generator=torch.Generator().manual_seed(0))
    keys[:, 20:] = keys[:, :20].flip(1)
    before = keys.clone()
    ordered, order = sort_rows_with_order(keys)
    expected = keys.sort(dim=1, stable=True)
    assert torch.equal(ordered, expected.values)
    assert torch.equal(order, expected.indices)
    assert torch.equal(sort_rows(keys), expected.values)
    assert torch.equal(keys, before)


@pytest.mark.parametrize("widest", [LIMIT - 1, LIMIT, -LIMIT, -LIMIT - 1])
def test_the_widest_keys_that_fit_with_an_index_and_the_next_ones_are_sorted(widest: int) -> None:
    keys = torch.tensor([[7, widest, 0, widest] * 10])
    ordered, order = sort_rows_with_order(keys)
    expected = keys.sort(dim=1, stable=True)
    assert torch.equal(ordered, expected.values)
    assert torch.equal(order, expected.indices)


@pytest.mark.parametrize("shape", [(0, 4), (3, 1)])
def test_rows_may_be_missing_or_have_one_key(shape: tuple[int, int]) -> None:
    ordered, order = sort_rows_with_order(torch.zeros(shape, dtype=torch.int64))
    assert ordered.shape == order.shape == shape
