import math
from typing import Any

import pytest

from c2fmae.core.metric_rows import (
    CurveComparison,
    compare_metrics,
    describe_row_problems,
    list_skipped_steps,
    select_step_rows,
)

Rows = list[dict[str, Any]]


def run(steps: int, **changed: dict[int, float | None]) -> Rows:
    """Rows of a run with a held-out look every 10 steps; `changed` gives a metric other values at some steps."""
    rows: Rows = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "lr": 0.1, "loss": 4.0, "loss/rgb": 2.0})
        if step % 10 == 0:
            rows.append({"step": step, "held_out/loss": 5.0})
    for name, values in changed.items():
        for row in rows:
            name = {"rgb": "loss/rgb", "held_out": "held_out/loss"}.get(name, name)
            if name in row and row["step"] in values:
                row[name] = values[row["step"]]
    return rows


def pair(a: Rows, b: Rows, name: str) -> CurveComparison:
    return next(curve for curve in compare_metrics(a, b).curves if curve.name == name)


def test_equal_runs_are_the_same_to_their_end() -> None:
    result = compare_metrics(run(40), run(40))
    assert (result.num_steps, result.identical_until, result.unmatched) == ((40, 40), 40, ((), ()))
    assert [curve.name for curve in result.curves] == ["lr", "loss", "loss/rgb", "held_out/loss"]
    assert {curve.first_difference for curve in result.curves} == {None}
    assert {curve.largest_difference for curve in result.curves} == {0.0}


def test_the_last_bit_is_a_difference() -> None:
    other = run(40, loss={17: math.nextafter(4.0, 5)})
    result = compare_metrics(run(40), other)
    assert result.identical_until == 16
    loss = pair(run(40), other, "loss")
    assert (loss.first_difference, loss.largest_difference_step) == (17, 17)
    assert loss.largest_difference == pytest.approx(2.2e-16, rel=0.02)


def test_the_largest_difference_is_relative_and_has_its_step() -> None:
    loss = pair(run(40), run(40, loss={5: 4.1, 9: 2.0, 30: 3.0}), "loss")
    assert (loss.first_difference, loss.largest_difference, loss.largest_difference_step) == (5, 0.5, 9)
    assert pair(run(40, lr={3: -0.1}), run(40), "lr").largest_difference == 2.0


def test_means_are_of_the_last_tenth_and_at_least_of_one() -> None:
    other = run(40, loss={36: 99.0, 37: 5.0, 40: 6.0}, held_out={30: 99.0, 40: 7.0})
    assert pair(run(40), other, "loss").final_means == (4.0, 4.75)
    assert pair(run(40), other, "held_out/loss").final_means == (5.0, 7.0)


def test_no_number_equals_no_number_and_differs_from_all_others() -> None:
    assert pair(run(9, loss={3: None}), run(9, loss={3: None}), "loss").first_difference is None
    loss = pair(run(9, loss={3: None}), run(9), "loss")
    assert (loss.first_difference, loss.largest_difference, loss.largest_difference_step, loss.final_means) == (
        3,
        math.inf,
        3,
        (4.0, 4.0),
    )
    assert math.isnan(pair(run(9, loss={9: None}), run(9), "loss").final_means[0])


def test_runs_of_different_lengths_are_compared_where_both_are() -> None:
    result = compare_metrics(run(25), run(40, held_out={30: 99.0}))
    assert (result.num_steps, result.identical_until) == ((25, 40), 25)
    assert {curve.first_difference for curve in result.curves} == {None}


def test_what_only_one_run_has_is_named() -> None:
    other = [{("alpha" if key == "lr" else key): value for key, value in row.items()} for row in run(9)]
    assert compare_metrics(run(10), other).unmatched == (("lr", "held_out/loss"), ("alpha",))


def test_runs_that_have_not_begun_have_nothing_to_compare() -> None:
    result = compare_metrics([], run(5))
    assert (result.num_steps, result.identical_until, result.curves) == ((0, 5), 0, ())
    assert result.unmatched == ((), ("lr", "loss", "loss/rgb"))


def test_a_row_of_held_out_losses_is_no_step() -> None:
    assert len(select_step_rows(run(20))) == 20


def test_missing_and_repeated_steps_are_named() -> None:
    rows = run(20)
    assert describe_row_problems(rows) == []
    assert describe_row_problems([]) == []
    assert describe_row_problems(rows[1:]) == ["step 1 has no row"]
    assert describe_row_problems([row for row in rows if row["step"] not in (4, 7, 8, 9)]) == [
        "step 4 has no row",
        "steps 7 to 9 have no row",
    ]
    assert describe_row_problems([*rows, rows[17]]) == ["step 17 comes after step 20"]


def test_skipped_steps_are_listed() -> None:
    rows = run(60)
    for row in rows:
        if row["step"] in (7, 40) and "loss" in row:
            row["skipped"] = "not finite"
    assert list_skipped_steps(rows) == [7, 40]
