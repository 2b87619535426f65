"""What rows of metrics say: whether they are all there, and how those of two runs differ."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


def step_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of training steps: others, of held-out losses say, have no loss of their own."""
    return [row for row in rows if "loss" in row]


def skipped_steps(rows: Iterable[Row]) -> list[int]:
    """Return the steps that were skipped."""
    return [row["step"] for row in rows if "skipped" in row]


def row_problems(rows: Iterable[Row]) -> list[str]:
    """Say which steps are missing, or there twice, among rows that should be of steps 1, 2, 3, …

    >>> row_problems([{"step": 1, "loss": 2.0}, {"step": 4, "loss": 1.9}, {"step": 4, "loss": 1.9}])
    ['steps 2 to 3 have no row', 'step 4 comes after step 4']
    """
    problems, last = [], 0
    for row in step_rows(rows):
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
class CurvePair:
    """One metric in two runs, at the steps that both have."""

    name: str
    first: int | None
    """The first step at which they differ; None if they never do."""
    largest: float
    """The largest relative difference, |a - b| / max(|a|, |b|): 2 for opposites, infinite for none and a number."""
    at: int
    """The step of the largest."""
    means: tuple[float, float]
    """Over the last tenth of those steps; NaN where there is no number."""


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    steps: tuple[int, int]
    """Of each run."""
    same_until: int
    """Up to this step the runs have the same metrics, to the last bit."""
    curves: tuple[CurvePair, ...]
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    """Metrics that only the one run has, or has at other steps than the other."""


def compare(a: Iterable[Row], b: Iterable[Row]) -> Comparison:
    """Compare the metrics of two runs, step by step."""
    ours, theirs = _by_name(a), _by_name(b)
    shared = {name: sorted(ours[name].keys() & theirs[name].keys()) for name in ours if name in theirs}
    curves = tuple(_pair(name, steps, ours[name], theirs[name]) for name, steps in shared.items() if steps)
    ends = (_end(ours), _end(theirs))
    firsts = [curve.first for curve in curves if curve.first is not None]
    matched = {curve.name for curve in curves}
    return Comparison(
        steps=ends,
        same_until=min(*ends, *(first - 1 for first in firsts)),
        curves=curves,
        unmatched=(
            tuple(name for name in ours if name not in matched),
            tuple(name for name in theirs if name not in matched),
        ),
    )


def _by_name(rows: Iterable[Row]) -> dict[str, dict[int, float | None]]:
    values: dict[str, dict[int, float | None]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and (value is None or isinstance(value, int | float)):
                values.setdefault(name, {})[row["step"]] = value
    return values


def _end(values: Mapping[str, Mapping[int, float | None]]) -> int:
    return max((step for curve in values.values() for step in curve), default=0)


def _pair(name: str, steps: Sequence[int], a: Mapping[int, float | None], b: Mapping[int, float | None]) -> CurvePair:
    apart = [_relative(a[step], b[step]) for step in steps]
    where = max(range(len(steps)), key=apart.__getitem__)
    tail = steps[-max(len(steps) // 10, 1) :]
    return CurvePair(
        name=name,
        first=next((step for step, difference in zip(steps, apart, strict=True) if difference), None),
        largest=apart[where],
        at=steps[where],
        means=(_mean(a[step] for step in tail), _mean(b[step] for step in tail)),
    )


def _relative(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def _mean(values: Iterable[float | None]) -> float:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else math.nan
