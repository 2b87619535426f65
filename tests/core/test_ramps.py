"""Ramps at their first and last steps, and against NumPy's formulas of DINO's code."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.ramps import Ramp, compute_value
from c2fmae.core.training import TrainingPlan

pytestmark = pytest.mark.numeric

PLAN = TrainingPlan(
    steps=30,
    warmup_steps=4,
    steps_per_epoch=3,
    batch_size=8,
    batch_size_per_rank=8,
    num_micro_batches=1,
    peak_lr=1e-3,
    final_lr_ratio=0.0,
)


def values(number: float | Ramp) -> list[float]:
    return [compute_value(number, step, PLAN) for step in range(PLAN.steps)]


def test_a_number_is_its_own_value() -> None:
    assert set(values(0.996)) == {0.996}


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("epochs", [None, 2, 5, 10])
@pytest.mark.parametrize(("start", "end"), [(0.04, 0.07), (0.996, 1.0), (0.1, 0.7), (0.4, 0.04), (1 / 3, 1 / 3)])
def test_a_ramp_leads_from_its_start_to_its_end(start: float, end: float, epochs: int | None, shape: Any) -> None:
    found = values(Ramp(start=start, end=end, shape=shape, epochs=epochs))
    assert found[0] == start
    if epochs is None:
        assert (end - found[-1]) * math.copysign(1, end - start) >= 0
        assert compute_value(Ramp(start=start, end=end, shape=shape), PLAN.steps, PLAN) == end
    else:
        first_of_last = 3 * (epochs - 1)
        assert set(found[:3]) == {start}
        assert set(found[first_of_last:]) == {end}
        assert start == end or found[first_of_last - 1] != end
    for one, other in pairwise(found):
        assert (other - one) * math.copysign(1, end - start) >= -1e-15


def test_a_cosine_over_the_run_is_that_of_dino() -> None:
    # Momentum and weight decay: base and final value, over all iterations.
    expected = 1.0 + 0.5 * (0.996 - 1.0) * (1 + np.cos(np.pi * np.arange(PLAN.steps) / PLAN.steps))
    assert values(Ramp(start=0.996, end=1.0)) == pytest.approx(expected.tolist(), rel=1e-14)


def test_a_cosine_over_the_run_is_that_of_lightly_with_one_step_more() -> None:
    scheduler = pytest.importorskip("lightly.utils.scheduler", reason="lightly is not installed")
    expected = [scheduler.cosine_schedule(step, PLAN.steps + 1, 0.99, 1.0) for step in range(PLAN.steps)]
    assert values(Ramp(start=0.99, end=1.0)) == pytest.approx(expected, rel=1e-14)


def test_a_line_over_epochs_is_that_of_dino() -> None:
    # The teacher's temperature: one for each epoch.
    by_epoch = np.concatenate((np.linspace(0.04, 0.07, 6), np.full(4, 0.07)))
    expected = by_epoch.repeat(3).tolist()
    assert values(Ramp(start=0.04, end=0.07, shape="linear", epochs=6)) == pytest.approx(expected, rel=1e-14)


class Momentum(Config):
    momentum: float | Ramp = Ramp(start=0.99, end=1.0)


def test_a_config_has_a_number_or_a_ramp() -> None:
    assert Momentum.from_dict({"momentum": 0.5}).momentum == 0.5
    changed = Momentum().override(["momentum.start=0.9", "momentum.epochs=4"])
    assert changed.momentum == Ramp(start=0.9, end=1.0, epochs=4)
    assert Momentum.from_dict({}, ["momentum.start=0.9"]).momentum == Ramp(start=0.9, end=1.0)
    assert Momentum.from_dict(changed.model_dump(mode="json")) == changed
    with pytest.raises(UserError, match="epochs: input should be greater than or equal to 2, got 1"):
        Ramp.from_dict({"start": 0, "end": 1, "epochs": 1})
