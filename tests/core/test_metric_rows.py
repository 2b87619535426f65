import json
import math
import re
from itertools import islice
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core import metric_rows
from c2fmae.core.errors import UserError
from c2fmae.core.metric_rows import (
    CurveComparison,
    RowWriter,
    compare_metrics,
    describe_row_problems,
    iterate_rows_from_end,
    list_skipped_steps,
    read_rows,
    read_rows_of_step,
    select_step_rows,
    truncate_rows,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(texts))
    return path


def test_a_row_is_one_line_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RowWriter(path) as rows:
        rows.write({"step": 1, "loss": 0.1 + 0.2, "lr": 1e-05, "skipped": "why", "b": None, "a": True})
        assert path.read_text() == (
            '{"step": 1, "loss": 0.30000000000000004, "lr": 1e-05, "skipped": "why", "b": null, "a": true}\n'
        )
        rows.write({"step": 2, "loss": nan, "high": inf, "low": -inf})
    with RowWriter(path) as rows:
        rows.write({})
    assert path.read_text().splitlines()[1:] == ['{"step": 2, "loss": null, "high": null, "low": null}', "{}"]


@given(st.lists(st.dictionaries(st.text(), SCALARS), max_size=5))
def test_written_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, expected: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.unlink(missing_ok=True)
    with RowWriter(path) as rows:
        for row in expected:
            rows.write(row)
    assert read_rows(path) == expected


def test_a_file_that_cannot_be_written_is_reported() -> None:
    path = Path("/dev/full")
    problem = "cannot be written: No space left on device. Fix the cause and run again with --resume"
    with RowWriter(path) as rows, pytest.raises(UserError) as caught:
        rows.write({"step": 1})
    assert str(caught.value) == f"{path}: {problem}"
    with pytest.raises(UserError) as caught:
        RowWriter(Path("/proc/none/metrics.jsonl"))
    assert str(caught.value) == (
        "/proc/none/metrics.jsonl: cannot be written: No such file or directory. "
        "Fix the cause and run again with --resume"
    )


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 9), st.data())
def test_truncation_removes_later_and_incomplete_rows_and_keeps_the_bytes_of_others(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], after: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    rows = [f'{{"step":{step} , "loss": 1.0}}\n' for step in sorted(steps)]
    incomplete = '{"step": 0, "loss": 1.0}'[: data.draw(st.integers(0, 24))]
    lines(path, *rows, incomplete)
    assert read_rows(path) == [{"step": step, "loss": 1.0} for step in sorted(steps)]
    truncate_rows(path, after_step=after)
    assert path.read_text() == "".join(row for row, step in zip(rows, sorted(steps), strict=True) if step <= after)


def test_truncation_keeps_rows_without_a_step_and_ignores_a_missing_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", '{"note": 1}\n', '{"step": 5}\n')
    truncate_rows(path, after_step=4)
    assert path.read_text() == '{"note": 1}\n'
    truncate_rows(tmp_path / "none.jsonl", after_step=4)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", ['{"step": \n', "[1]\n", "\n", '{"a": 1} {"b": 1}\n', "\0\0\0\n"])
def test_an_invalid_line_is_reported_with_its_number(bad: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", '{"step": 1}\n', bad, '{"step": 2}\n')
    for read in (read_rows, lambda path: truncate_rows(path, after_step=0)):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: line 2 is not a JSON object. Fix or remove the line"
    lines(path, '{"step": 1}\n', bad)
    assert read_rows(path) == [{"step": 1}]


@pytest.mark.parametrize("bytes_per_read", [1, 7, 64, 1 << 16])
@given(
    texts=st.lists(st.sampled_from(['{"step": 1}\n', '{"note": "é"}\n', "{}\n"]), max_size=9), extra=st.integers(0, 11)
)
def test_rows_from_the_end_are_the_rows_in_reverse(
    bytes_per_read: int, texts: list[str], extra: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = lines(tmp_path_factory.getbasetemp() / "reverse.jsonl", *texts, '{"step": 2}'[:extra])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_rows, "_BYTES_PER_READ", bytes_per_read)
        assert list(iterate_rows_from_end(path)) == read_rows(path)[::-1]


def test_a_resume_reads_only_the_end_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_rows, "_BYTES_PER_READ", 64)
    rows = [f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 40)]
    path = lines(tmp_path / "rows.jsonl", "damaged\n", *rows)
    assert [row["step"] for row in islice(iterate_rows_from_end(path), 3)] == [39, 38, 37]
    assert read_rows_of_step(path, 37) == [{"step": 37, "loss": 1.0}]
    truncate_rows(path, after_step=36)
    assert path.read_text() == "".join(["damaged\n", *rows[:36]])
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        read_rows(path)


def test_rows_without_a_step_do_not_hide_those_before_them(tmp_path: Path) -> None:
    note = '{"note": 1}\n'
    steps = [f'{{"step": {step}}}\n' for step in range(4)]
    path = lines(tmp_path / "rows.jsonl", note, steps[1], note, steps[2], note, steps[3], note)
    assert read_rows_of_step(path, 3) == [{"step": 3}]
    assert read_rows_of_step(path, 2) == [{"step": 2}]
    truncate_rows(path, after_step=3)
    assert path.read_text() == "".join([note, steps[1], note, steps[2], note, steps[3], note])
    truncate_rows(path, after_step=1)
    assert path.read_text() == "".join([note, steps[1], note])
    truncate_rows(path, after_step=0)
    assert path.read_text() == note


def test_a_long_line_is_copied_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_rows, "_BYTES_PER_READ", 16)
    sizes = list[int]()
    long_line = re.compile(rb"[^\n]*\n|[^\n]+")

    class Counting:
        @staticmethod
        def findall(text: bytes) -> list[bytes]:
            sizes.append(len(text))
            return long_line.findall(text)

    monkeypatch.setattr(metric_rows, "_LINE", Counting)
    row = {"step": 1, "text": "x" * 10_000}
    path = lines(tmp_path / "rows.jsonl", json.dumps(row) + "\n")
    assert list(iterate_rows_from_end(path)) == [row]
    assert sum(sizes) < 4 * path.stat().st_size


def test_rows_of_a_step_are_in_their_order(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", *(f'{{"step": {step}, "a": {a}}}\n' for step in (1, 2, 3) for a in (1, 2)))
    for step in (1, 2, 3):
        assert read_rows_of_step(path, step) == [{"step": step, "a": 1}, {"step": step, "a": 2}]
    assert read_rows_of_step(path, 0) == read_rows_of_step(path, 4) == []


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory. Restore it"


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


def test_equal_runs_are_identical_to_their_end() -> None:
    result = compare_metrics(run(40), run(40))
    assert (result.num_steps, result.identical_until, result.unmatched) == ((40, 40), 40, ((), ()))
    assert [curve.name for curve in result.curves] == ["lr", "loss", "loss/rgb", "held_out/loss"]
    assert {curve.first_difference for curve in result.curves} == {None}
    assert {curve.largest_difference for curve in result.curves} == {0.0}


def test_a_difference_in_the_last_bit_counts() -> None:
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


def test_final_means_are_over_the_last_tenth() -> None:
    other = run(40, loss={36: 99.0, 37: 5.0, 40: 6.0}, held_out={30: 99.0, 40: 7.0})
    assert pair(run(40), other, "loss").final_means == (4.0, 4.75)
    assert pair(run(40), other, "held_out/loss").final_means == (5.0, 7.0)


def test_null_equals_null_and_differs_from_numbers() -> None:
    assert pair(run(9, loss={3: None}), run(9, loss={3: None}), "loss").first_difference is None
    loss = pair(run(9, loss={3: None}), run(9), "loss")
    assert (loss.first_difference, loss.largest_difference, loss.largest_difference_step, loss.final_means) == (
        3,
        math.inf,
        3,
        (4.0, 4.0),
    )
    assert math.isnan(pair(run(9, loss={9: None}), run(9), "loss").final_means[0])


def test_runs_of_different_lengths_are_compared_at_common_steps() -> None:
    result = compare_metrics(run(25), run(40, held_out={30: 99.0}))
    assert (result.num_steps, result.identical_until) == ((25, 40), 25)
    assert {curve.first_difference for curve in result.curves} == {None}


def test_metrics_of_only_one_run_are_listed() -> None:
    other = [{("alpha" if key == "lr" else key): value for key, value in row.items()} for row in run(9)]
    assert compare_metrics(run(10), other).unmatched == (("lr", "held_out/loss"), ("alpha",))


def test_empty_runs_have_nothing_to_compare() -> None:
    result = compare_metrics([], run(5))
    assert (result.num_steps, result.identical_until, result.curves) == ((0, 5), 0, ())
    assert result.unmatched == ((), ("lr", "loss", "loss/rgb"))


def test_held_out_rows_are_not_step_rows() -> None:
    assert len(select_step_rows(run(20))) == 20


def test_missing_and_repeated_steps_are_described() -> None:
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


def test_runs_that_differ_before_the_first_step_are_identical_until_step_0() -> None:
    result = compare_metrics(*([{"step": 0, "probe/knn": value}, {"step": 1, "loss": 2.0}] for value in (8.5, 9.5)))
    assert (result.num_steps, result.identical_until) == ((1, 1), 0)
    assert [curve.first_difference for curve in result.curves] == [0, None]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"step": "1"}', "step: expected an integer of at least 0"),
        ('{"step": true}', "step: expected an integer of at least 0"),
        ('{"step": -1}', "step: expected an integer of at least 0"),
        ('{"step": 9223372036854775808}', "step: expected an integer of at least 0"),
        ('{"step": 1, "loss": "low"}', "loss: expected a number, in a row with a step"),
        ('{"loss": 1.0}', "loss: expected a number, in a row with a step"),
        ('{"step": 1, "lr": [1]}', "lr: expected a number or text, got list"),
        ('{"step": 1, "lr": {}}', "lr: expected a number or text, got dict"),
    ],
)
def test_rows_with_values_of_other_types_are_reported(row: str, problem: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", '{"step": 1}\n', f"{row}\n")
    for read in (read_rows, lambda path: truncate_rows(path, after_step=9)):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: line 2: {problem}. Fix or remove the line"


def test_numbers_beyond_a_float_are_not_compared() -> None:
    huge = [*run(3), {"step": 3, "size": 10**400}]
    assert [curve.name for curve in compare_metrics(huge, huge).curves] == ["lr", "loss", "loss/rgb"]
