import math
from typing import Any

import numpy as np
import pytest

from c2fmae.core.spikes import MIN_LOSSES, WINDOW_SIZE, SpikeDetector


def falling(steps: int, noise: str = "normal", seed: int = 0) -> list[float]:
    """A loss as training has it: quick at first, slow later, and noisy."""
    draw = np.random.default_rng(seed)
    kinds = {
        "none": np.zeros(steps),
        "normal": draw.normal(0, 0.05, steps),
        "strong": draw.normal(0, 0.3, steps),
        "uniform": draw.uniform(-0.2, 0.2, steps),
        "of a few levels": draw.choice([-0.1, 0.0, 0.1], steps),
    }
    return list((1 + 3 * np.exp(-np.arange(steps) / 800) + kinds[noise]).tolist())


def warnings(losses: list[float]) -> list[str]:
    detector = SpikeDetector()
    results = [detector.add_loss(step, loss) for step, loss in enumerate(losses, start=1)]
    return [warning for warning in results if warning]


@pytest.mark.parametrize("noise", ["none", "normal", "strong", "uniform", "of a few levels"])
@pytest.mark.parametrize("seed", range(3))
def test_a_noisy_curve_has_no_spikes(noise: str, seed: int) -> None:
    assert warnings(falling(5000, noise, seed)) == []


def test_a_slow_rise_and_a_small_step_are_not_spikes() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 8000)
    assert warnings((1 + 0.5 * np.sin(np.arange(8000) / 1000) + noise).tolist()) == []
    assert warnings([1.0] * 200 + [1.09] * 200) == []


@pytest.mark.parametrize("noise", ["none", "normal", "strong", "of a few levels"])
def test_planted_spikes_are_found(noise: str) -> None:
    losses = falling(3000, noise)
    for step in (500, 1700, 2999):
        losses[step - 1] = 20.0
    assert [int(sentence.split()[1][:-1]) for sentence in warnings(losses)] == [500, 1700, 2999]


def test_the_warning_contains_the_loss_and_the_median() -> None:
    assert warnings([2.0] * 50 + [7.123456]) == ["step 51: the loss is 7.123, far above its recent median of 2"]


def test_a_spike_of_many_steps_is_reported_once() -> None:
    assert len(warnings([2.0] * 200 + [9.0] * 40 + [2.0] * 200)) == 1
    assert len(warnings([2.0] * 200 + [9.0] * 40 + [2.0] * 5 + [9.0] + [2.0] * 50)) == 2
    assert len(warnings([2.0] * 200 + [9.0] * 500)) == 1  # where it has got used to


def test_there_are_no_warnings_before_enough_losses() -> None:
    assert warnings([2.0] * (MIN_LOSSES - 1) + [9.0]) == []
    assert len(warnings([2.0] * MIN_LOSSES + [9.0])) == 1


@pytest.mark.parametrize("none", [None, math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_skipped(none: float | None) -> None:
    watch = SpikeDetector()
    for step in range(50):
        assert watch.add_loss(step, 2.0) is None
        assert watch.add_loss(step, none) is None
    assert watch.add_loss(51, 9.0) is not None


def test_negative_losses_can_have_spikes() -> None:
    assert len(warnings([-2.0] * 50 + [-1.0] + [-2.0] * 50)) == 1
    assert warnings([-2.0] * 50 + [-3.0] + [-2.0] * 50) == []


@pytest.mark.parametrize("stop", [90, 501, 519, 700])
def test_a_resumed_run_gives_the_same_warnings(stop: int) -> None:
    losses = falling(1000)
    losses[499:520] = [20.0] * 21
    losses[700] = 15.0
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    whole = SpikeDetector().add_rows(rows)
    assert [sentence.split(":")[0] for sentence in whole] == ["step 500", "step 701"]
    watch = SpikeDetector()
    watch.add_rows(rows[:stop])
    resumed = [watch.add_loss(step, loss) for step, loss in enumerate(losses[stop:], start=stop + 1)]
    assert [sentence for sentence in resumed if sentence] == whole[1 if stop >= 500 else 0 :]


def test_skipped_steps_and_other_rows_are_ignored() -> None:
    rows: list[dict[str, Any]] = [{"step": step, "loss": 2.0} for step in range(1, 61)]
    rows[39] = {"step": 40, "loss": 90.0, "skipped": "not finite"}
    rows[49] = {"step": 50, "loss": 60.0}
    rows.insert(45, {"step": 45, "held_out/loss": 90.0})
    assert SpikeDetector().add_rows(rows) == ["step 50: the loss is 60, far above its recent median of 2"]


def test_only_recent_losses_count() -> None:
    losses = [5.0] * 1000 + [1.0] * WINDOW_SIZE
    assert len(warnings([*losses, 5.0])) == 1


@pytest.mark.parametrize("num_rows", [0, 1, 30, 101, 102, 350])
def test_a_detector_restored_from_the_last_rows_equals_one_with_all_losses(num_rows: int) -> None:
    losses: list[float | None] = [*falling(400)]
    for step in (100, 101, 102, 349, 350):
        losses[step - 1] = 20.0
    losses[120], losses[340] = None, None
    rows: list[dict[str, Any]] = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    rows[200]["skipped"] = "not finite"
    rows.insert(345, {"step": 345, "held_out/loss": 3.0})
    complete, restored = SpikeDetector(), SpikeDetector()
    complete.add_rows(rows[:num_rows])
    restored.restore(reversed(rows[:num_rows]))
    assert restored.add_rows(rows[num_rows:]) == complete.add_rows(rows[num_rows:])
    assert vars(restored) == vars(complete)


def test_a_detector_is_restored_from_one_loss_more_than_its_window() -> None:
    losses = [2.0, *[1.0] * (WINDOW_SIZE // 2), *[2.0] * (WINDOW_SIZE // 2 - 1), 1.2]  # the oldest decides the median
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    complete, restored = SpikeDetector(), SpikeDetector()
    complete.add_rows(rows)
    restored.restore(reversed(rows))
    assert vars(restored) == vars(complete)
