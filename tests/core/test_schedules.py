import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.schedules import warmup_cosine

pytestmark = pytest.mark.numeric

SHARES = st.floats(0, 1)


def closed_form(step: int, total: int, warmup: int, floor: float) -> float:
    """The same law in other words: a line through (warmup - 1, 1), then cos² of a quarter turn above the floor."""
    if step < warmup:
        return 1 - (warmup - 1 - step) / warmup
    return floor + (1 - floor) * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (7, 0), (7, 1), (7, 6), (7, 7), (1000, 50)])
def test_the_schedule_equals_its_closed_form(total: int, warmup: int, floor: float) -> None:
    for step in range(total):
        found = warmup_cosine(step, total_steps=total, warmup_steps=warmup, floor=floor)
        assert found == pytest.approx(closed_form(step, total, warmup, floor), abs=1e-12)


@given(st.integers(1, 300), st.data(), SHARES)
def test_the_schedule_rises_to_the_peak_and_falls_to_the_floor(total: int, data: st.DataObject, floor: float) -> None:
    warmup = data.draw(st.integers(0, total))
    rates = [warmup_cosine(step, total_steps=total, warmup_steps=warmup, floor=floor) for step in range(total)]
    up, down = rates[:warmup], rates[warmup:]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert max(rates) == pytest.approx(1)
    assert all(0 < rate <= 1 for rate in up)
    assert all(floor - 1e-12 <= rate <= 1 for rate in down)
    if warmup < total:
        assert warmup_cosine(total, total_steps=total, warmup_steps=warmup, floor=floor) == pytest.approx(
            floor, abs=1e-12
        )


def test_the_first_step_has_the_peak_without_warm_up() -> None:
    assert warmup_cosine(0, total_steps=10, warmup_steps=0) == 1.0


def test_warm_up_can_last_for_all_steps() -> None:
    assert [warmup_cosine(step, total_steps=4, warmup_steps=4, floor=0.5) for step in range(4)] == [
        0.25,
        0.5,
        0.75,
        1.0,
    ]
