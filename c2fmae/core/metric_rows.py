"""Rows of metrics in JSON Lines files: writing, reading, checks, and comparison of two runs."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file, write_atomic
from c2fmae.core.json_file import parse_json_object

_MAX_BYTES = 1 << 36  # tens of millions of steps
JsonScalar = float | int | str | bool | None
MetricRow = Mapping[str, Any]


class RowWriter:
    """A file to which rows are appended without buffering: a row is in the file when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _write_error(path, error) from error

    def write(self, row: Mapping[str, JsonScalar]) -> None:
        """Append a row. Numbers that are not finite become null, since JSON cannot represent them."""
        json_row = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        line = memoryview(json.dumps(json_row).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise _write_error(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, without an incomplete last one."""
    return [row for _, row in _read_lines(path)]


def truncate_rows(path: Path, *, after_step: int) -> None:
    """Remove the rows of steps after `after_step`, and an incomplete last one. Other rows keep their bytes."""
    if path.exists():
        remaining = b"".join(line for line, row in _read_lines(path) if row.get("step", after_step) <= after_step)
        if len(remaining) != path.stat().st_size:
            write_atomic(path, remaining)


def select_step_rows(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """Return the rows of training steps. Rows of held-out losses, for example, have no `loss`."""
    return [row for row in rows if "loss" in row]


def list_skipped_steps(rows: Iterable[MetricRow]) -> list[int]:
    """Return the steps that were skipped."""
    return [row["step"] for row in rows if "skipped" in row]


def describe_row_problems(rows: Iterable[MetricRow]) -> list[str]:
    """Return a sentence for each gap or repetition in rows of the steps 1, 2, 3, …

    >>> describe_row_problems([{"step": 1, "loss": 2.0}, {"step": 4, "loss": 1.9}, {"step": 4, "loss": 1.9}])
    ['steps 2 to 3 have no row', 'step 4 comes after step 4']
    """
    problems, last = [], 0
    for row in select_step_rows(rows):
        step = row["step"]
        if step <= last:
            problems.append(f"step {step} comes after step {last}")
        elif step == last + 2:
            problems.append(f"step {last + 1} has no row")
        elif step > last + 2:
            problems.append(f"steps {last + 1} to {step - 1} have no row")
        last = step
    return problems


@dataclass(frozen=True)
class CurveComparison:
    """Comparison of one metric in two runs, at the steps that both have."""

    name: str
    first_difference: int | None
    """The first step at which the values differ; None if there is none."""
    largest_difference: float
    """The largest |a - b| / max(|a|, |b|): 2 for values of opposite sign, infinite if only one of them is null."""
    largest_difference_step: int
    final_means: tuple[float, float]
    """Mean of each run over the last tenth of the common steps; NaN if all values are null."""


@dataclass(frozen=True)
class RunComparison:
    """Comparison of the metrics of two runs."""

    num_steps: tuple[int, int]
    """Number of steps of each run."""
    identical_until: int
    """The last step up to which all metrics are bitwise equal."""
    curves: tuple[CurveComparison, ...]
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    """Names of metrics in only one of the runs, or at no common step, for each run."""


def compare_metrics(a: Iterable[MetricRow], b: Iterable[MetricRow]) -> RunComparison:
    """Compare the metrics of two runs, step by step."""
    a_values, b_values = _group_by_name(a), _group_by_name(b)
    common_steps = {
        name: sorted(a_values[name].keys() & b_values[name].keys()) for name in a_values if name in b_values
    }
    curves = tuple(
        _compare_curve(name, steps, a_values[name], b_values[name]) for name, steps in common_steps.items() if steps
    )
    num_steps = (_last_step(a_values), _last_step(b_values))
    first_differences = [curve.first_difference for curve in curves if curve.first_difference is not None]
    matched = {curve.name for curve in curves}
    return RunComparison(
        num_steps=num_steps,
        identical_until=max(0, min(*num_steps, *(step - 1 for step in first_differences))),
        curves=curves,
        unmatched=(
            tuple(name for name in a_values if name not in matched),
            tuple(name for name in b_values if name not in matched),
        ),
    )


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines of a file with their rows."""
    lines = read_file(path, max_bytes=_MAX_BYTES, fix="Restore it").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json_object(line)
        except ValueError:
            row = None
        if row is not None and (problem := _find_row_problem(row)):
            raise UserError(f"{path}: line {number}: {problem}. Fix or remove the line")
        if row is not None and line.endswith(b"\n"):
            rows.append((line, row))
        elif number < len(lines):
            raise UserError(f"{path}: line {number} is not a JSON object. Fix or remove the line")
    return rows


def _find_row_problem(row: Mapping[str, Any]) -> str | None:
    """Return why a row cannot be one of metrics: a value that is not plain, or no number where code expects one."""
    for key, value in row.items():
        if isinstance(value, dict | list):
            return f"{key}: expected a number or text, got {type(value).__name__}"
    if "step" in row and not (type(row["step"]) is int and 0 <= row["step"] < 2**63):
        return "step: expected an integer of at least 0"
    if "loss" in row and not ("step" in row and (row["loss"] is None or is_number(row["loss"]))):
        return "loss: expected a number, in a row with a step"
    return None


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a number that a float can represent."""
    return type(value) in (int, float) and not abs(value) > sys.float_info.max


def _write_error(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written: {error.strerror}. Fix the cause and run again with --resume")


def _group_by_name(rows: Iterable[MetricRow]) -> dict[str, dict[int, float | None]]:
    values: dict[str, dict[int, float | None]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and (value is None or is_number(value)):
                values.setdefault(name, {})[row["step"]] = value
    return values


def _last_step(values: Mapping[str, Mapping[int, float | None]]) -> int:
    return max((step for curve in values.values() for step in curve), default=0)


def _compare_curve(
    name: str, steps: Sequence[int], a: Mapping[int, float | None], b: Mapping[int, float | None]
) -> CurveComparison:
    differences = [_relative_difference(a[step], b[step]) for step in steps]
    index = max(range(len(steps)), key=differences.__getitem__)
    tail = steps[-max(len(steps) // 10, 1) :]
    return CurveComparison(
        name=name,
        first_difference=next((step for step, difference in zip(steps, differences, strict=True) if difference), None),
        largest_difference=differences[index],
        largest_difference_step=steps[index],
        final_means=(_mean(a[step] for step in tail), _mean(b[step] for step in tail)),
    )


def _relative_difference(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def _mean(values: Iterable[float | None]) -> float:
    finite = [value for value in values if value is not None]
    return math.fsum(finite) / len(finite) if finite else math.nan
