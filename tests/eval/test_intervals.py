import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.eval.intervals import wilson_interval

pytestmark = pytest.mark.numeric


@given(st.integers(1, 100_000), st.floats(0, 1))
def test_the_ends_of_the_interval_are_shares_that_the_found_one_lies_two_deviations_from(n: int, share: float) -> None:
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            deviations = abs(share - end) / math.sqrt(end * (1 - end) / n)
            assert deviations == pytest.approx(1.959964, rel=1e-4)


def test_the_interval_of_a_percentage_is_in_percent() -> None:
    assert wilson_interval(0.3, 50, scale=100) == pytest.approx([100 * end for end in wilson_interval(0.3, 50)])
