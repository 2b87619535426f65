"""The differences between two runs: their configs, environments and metrics."""

import math
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from c2fmae.core.config_diff import config_differences
from c2fmae.core.environment import describe_environment_changes
from c2fmae.core.metric_rows import CurveComparison, compare_metrics
from c2fmae.core.text import format_count
from c2fmae.core.yaml_file import read_yaml
from c2fmae.doctor.diagnosis import Diagnosis
from c2fmae.doctor.run import find_run, read_step_rows
from c2fmae.doctor.run_config import get_config_class
from c2fmae.report import Table, table_to_lines


def compare_runs(path: Path, other: Path) -> Diagnosis:
    """Report how two runs differ in settings that change the result, in environment, and in each metric."""
    run_dirs = [find_run(path), find_run(other)]
    config_class = get_config_class(path)
    changes = config_differences(*(config_class.migrate(read_yaml(run_dir.config_path)) for run_dir in run_dirs))
    settings = [change for change in changes if not config_class.is_resume_safe(change.partition(":")[0])]
    environments = [run_dir.read_environment() for run_dir in run_dirs]
    metrics = compare_metrics(*(read_step_rows(run_dir) for run_dir in run_dirs))
    findings = [
        *(
            ("run", f"{run_dir.path}: {format_count(steps, 'step')}")
            for run_dir, steps in zip(run_dirs, metrics.num_steps, strict=True)
        ),
        *(("settings", setting) for setting in settings or ["equal"]),
    ]
    if all(environments):
        findings += [("environment", change) for change in describe_environment_changes(*environments)]
    if metrics.identical_until:
        findings.append(("metrics", f"bitwise equal up to step {metrics.identical_until:,}"))
    differing = [curve for curve in metrics.curves if curve.first_difference is not None]
    if differing:
        first = min(curve.first_difference or 0 for curve in differing)
        names = ", ".join(curve.name for curve in differing if curve.first_difference == first)
        findings.append(("metrics", f"first difference at step {first:,}: {names}"))
    for run_dir, unmatched in zip(run_dirs, metrics.unmatched, strict=True):
        if unmatched:
            findings.append(("metrics", f"only in {run_dir.path}, or at other steps: {', '.join(unmatched)}"))
    shown = [curve for curve in metrics.curves if curve in differing or curve.name.endswith("loss")]
    return Diagnosis(findings, [], f"c2fmae doctor {quote(str(path))}", _curve_table(shown))


def _curve_table(curves: Sequence[CurveComparison]) -> list[str]:
    if not curves:
        return []
    columns = ("metric", "first difference", "largest relative difference", "mean of the last tenth")
    return table_to_lines(Table("", columns, [_curve_row(curve) for curve in curves]))


def _curve_row(curve: CurveComparison) -> tuple[str, ...]:
    means = f"{curve.final_means[0]:.6g} → {curve.final_means[1]:.6g}"
    if curve.first_difference is None:
        return (curve.name, "none", "", means)
    largest = f"{curve.largest_difference:.2g}" if math.isfinite(curve.largest_difference) else "missing in one run"
    return (
        curve.name,
        f"step {curve.first_difference:,}",
        f"{largest}, at step {curve.largest_difference_step:,}",
        means,
    )
