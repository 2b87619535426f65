"""Rows of metrics in JSON Lines files: writing, reading, checks, and comparison of two runs."""

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file
from c2fmae.core.json_file import pause_gc

_BYTES_PER_READ = 1 << 16
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_CONTAINERS = frozenset((dict, list))
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
    with pause_gc():
        return list(iterate_rows(path))


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, without an incomplete last one. Raise a `UserError` for any other invalid line."""
    with open_file(path, fix="Restore it") as file:
        for number, line in enumerate(file, start=1):
            row = _parse_row(line)
            if row is None and not file.read(1):
                return
            if problem := _find_line_problem(row):
                raise UserError(f"{path}: line {number}{problem}. Fix or remove the line")
            if row is not None and line.endswith(b"\n"):
                yield row


def iterate_rows_from_end(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file from the last to the first, without an incomplete last one.

    Of a long file, only the end is read and checked that is consumed.
    """
    return (row for _, row in _iterate_from_end(path))


def read_rows_of_step(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the rows of one of the last steps. The steps of the rows must be in order, as a run writes them."""
    recent = takewhile(lambda row: row.get("step", step) >= step, iterate_rows_from_end(path))
    return [row for row in recent if row.get("step") == step][::-1]


def truncate_rows(path: Path, *, after_step: int) -> None:
    """Remove the rows of steps after `after_step`, what follows them, and an incomplete last row.

    The steps of the rows must be in order, as a run writes them: the end of the file is read up to a step that remains.
    """
    if not path.exists():
        return
    remaining_bytes = 0
    for end, row in _iterate_from_end(path):
        step = row.get("step")
        if step is not None and step > after_step:
            remaining_bytes = 0
            continue
        remaining_bytes = remaining_bytes or end
        if step is not None:
            break
    if remaining_bytes != path.stat().st_size:
        try:
            os.truncate(path, remaining_bytes)
        except OSError as error:
            raise _write_error(path, error) from error


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


def _iterate_from_end(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file from the last to the first, each with the position of its end."""
    with open_file(path, fix="Restore it") as file:
        size = file.seek(0, os.SEEK_END)
        for end, line in _iterate_lines_from_end(file):
            row = _parse_row(line)
            if row is None and end == size:
                continue
            if problem := _find_line_problem(row):
                file.seek(0)
                number = 1 + file.read(end - len(line)).count(b"\n")
                raise UserError(f"{path}: line {number}{problem}. Fix or remove the line")
            if row is not None and line.endswith(b"\n"):
                yield end, row


def _iterate_lines_from_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file from the last to the first, each with the position of its end."""
    start = end = file.seek(0, os.SEEK_END)
    first = b""  # the line of which only the end has been read
    while start:
        num_bytes = max(_BYTES_PER_READ, len(first))  # twice as much each time, so that a long line is copied rarely
        previous_start, start = start, max(start - num_bytes, 0)
        file.seek(start)
        lines = _LINE.findall(file.read(previous_start - start) + first)
        first = lines.pop(0) if start else b""
        for line in reversed(lines):
            yield end, line
            end -= len(line)


def _parse_row(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line; None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _find_line_problem(row: MetricRow | None) -> str | None:
    """Return the end of a sentence about a line that is not a row of metrics; `row` is None without a JSON object."""
    if row is None:
        return " is not a JSON object"
    problem = _find_row_problem(row)
    return f": {problem}" if problem else None


def _find_row_problem(row: Mapping[str, Any]) -> str | None:
    """Return why a row cannot be one of metrics: a value that is not plain, or no number where code expects one."""
    if not _CONTAINERS.isdisjoint(map(type, row.values())):
        key, value = next((key, value) for key, value in row.items() if type(value) in _CONTAINERS)
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
