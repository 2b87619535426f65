import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.schedules import warmup_cosine, warmup_linear, warmup_multistep

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


@pytest.mark.parametrize("start", [0.0, 1e-6, 0.25, 1.0])
def test_warm_up_from_a_value_ends_at_the_peak_like_linear_lr(start: float) -> None:
    """`torch.optim.lr_scheduler.LinearLR` is the reference. All three schedules have the same warm-up."""
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=max(start, 1e-9), total_iters=5)
    for step in range(6):
        expected = pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-8)
        assert warmup_cosine(step, total_steps=9, warmup_steps=5, warmup_start=start) == expected
        assert warmup_linear(step, total_steps=9, warmup_steps=5, warmup_start=start) == expected
        assert warmup_multistep(step, milestones=(8,), gamma=0.1, warmup_steps=5, warmup_start=start) == expected
        optimiser.step()
        reference.step()


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0, 3, 7])
def test_the_linear_schedule_loses_the_same_at_every_step(warmup: int, floor: float) -> None:
    rates = [warmup_linear(step, total_steps=8, warmup_steps=warmup, floor=floor) for step in range(9)]
    cosine = [warmup_cosine(step, total_steps=8, warmup_steps=warmup, floor=floor) for step in range(9)]
    assert rates[: warmup + 1] == cosine[: warmup + 1]
    assert rates[8] == pytest.approx(floor)
    losses = [before - after for before, after in pairwise(rates[warmup:])]
    assert losses == pytest.approx([(1 - floor) / (8 - warmup)] * (8 - warmup))


def test_the_multistep_schedule_follows_multi_step_lr() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[3, 5], gamma=0.1)
    for step in range(8):
        found = warmup_multistep(step, milestones=(3, 5), gamma=0.1, warmup_steps=0)
        assert found == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        reference.step()
