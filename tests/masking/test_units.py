import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from c2fmae.masking import random_mask
from c2fmae.masking.units import count_masked_units, repeat_units


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))
def test_every_unit_is_hidden_or_visible_as_one(rows: int, columns: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    units = rows * columns
    num_masked = torch.randint(0, units + 1, (3,), generator=generator)
    hidden = random_mask(torch.rand(3, units, generator=generator), num_masked)
    patches = repeat_units(hidden, (rows * size, columns * size), size).view(3, rows * size, columns * size)
    for row in range(rows * size):
        for column in range(columns * size):
            assert torch.equal(patches[:, row, column], hidden[:, row // size * columns + column // size])
    assert torch.equal(patches.sum(dim=(1, 2)), num_masked * size**2)


def test_cmae_sees_17_of_49_units() -> None:
    assert 49 - count_masked_units(49, 0.65) == int(49 * (1 - 0.65)) == 17


@example(100, 7)  # 100 × 0.07 is more than 7
@given(st.integers(1, 400), st.integers(0, 100))
def test_the_ratio_is_rounded_up_exactly(num_units: int, percent: int) -> None:
    assert count_masked_units(num_units, percent / 100) == -(-num_units * percent // 100)


def test_units_that_do_not_fill_the_grid_are_refused() -> None:
    message = r"^is_masked: expected a mask of the 2×2 units of 4×5 patches, got 5 units$"
    with pytest.raises(ValueError, match=message):
        repeat_units(torch.zeros(1, 5, dtype=torch.bool), (4, 5), 2)
    with pytest.raises(ValueError, match=r"of 4×4 patches, got 5 units$"):
        repeat_units(torch.zeros(1, 5, dtype=torch.bool), (4, 4), 2)
