"""What rows of metrics say: whether they are all there, and how those of two runs differ."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MetricRow = Mapping[str, Any]


def select_step_rows(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """Return the rows of training steps: others, of held-out losses say, have no loss of their own."""
    return [row for row in rows if "loss" in row]


def list_skipped_steps(rows: Iterable[MetricRow]) -> list[int]:
    """Return the steps that were skipped."""
    return [row["step"] for row in rows if "skipped" in row]


def describe_row_problems(rows: Iterable[MetricRow]) -> list[str]:
    """Say which steps are missing, or there twice, among rows that should be of steps 1, 2, 3, …

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
    """One metric in two runs, at the steps that both have."""

    name: str
    first_difference: int | None
    """The first step at which they differ; None if they never do."""
    largest_difference: float
    """The largest relative difference, |a - b| / max(|a|, |b|): 2 for opposites, infinite for none and a number."""
    largest_difference_step: int
    """The step of the largest."""
    final_means: tuple[float, float]
    """Over the last tenth of those steps; NaN where there is no number."""


@dataclass(frozen=True)
class RunComparison:
    """Two runs side by side."""

    num_steps: tuple[int, int]
    """Of each run."""
    identical_until: int
    """Up to this step the runs have the same metrics, to the last bit."""
    curves: tuple[CurveComparison, ...]
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    """Metrics that only the one run has, or has at other steps than the other."""


def compare_metrics(a: Iterable[MetricRow], b: Iterable[MetricRow]) -> RunComparison:
    """Compare the metrics of two runs, step by step."""
    ours, theirs = _group_by_name(a), _group_by_name(b)
    shared = {name: sorted(ours[name].keys() & theirs[name].keys()) for name in ours if name in theirs}
    curves = tuple(_compare_curve(name, steps, ours[name], theirs[name]) for name, steps in shared.items() if steps)
    ends = (_last_step(ours), _last_step(theirs))
    firsts = [curve.first_difference for curve in curves if curve.first_difference is not None]
    matched = {curve.name for curve in curves}
    return RunComparison(
        num_steps=ends,
        identical_until=min(*ends, *(first - 1 for first in firsts)),
        curves=curves,
        unmatched=(
            tuple(name for name in ours if name not in matched),
            tuple(name for name in theirs if name not in matched),
        ),
    )


def _group_by_name(rows: Iterable[MetricRow]) -> dict[str, dict[int, float | None]]:
    values: dict[str, dict[int, float | None]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and (value is None or isinstance(value, int | float)):
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
