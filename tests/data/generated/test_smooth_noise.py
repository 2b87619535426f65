import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.data.generated.arrays import pixel_centres
from c2fmae.data.generated.smooth_noise import smooth_noise

pytestmark = pytest.mark.numeric


@given(st.integers(0, 99), st.integers(2, 30), st.integers(2, 30), st.floats(0, 2))
def test_noise_has_mean_0_and_deviation_of_about_1(seed: int, rows: int, columns: int, fall: float) -> None:
    values = smooth_noise(np.random.default_rng(seed), pixel_centres(64), 64, rows, columns, fall)
    assert values.shape == (64, 64)
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.5
    assert 0.02 < values.std() < 5
