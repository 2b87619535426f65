from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.doctor.comparison import compare_runs
from tests.doctor.runs import make_run

A, B = Path("a"), Path("b")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_equal_runs_are_bitwise_equal() -> None:
    make_run(A)
    make_run(B)
    comparison = compare_runs(A, B)
    assert comparison.lines == [
        "run             a: 120 steps",
        "run             b: 120 steps",
        "settings        equal",
        "metrics         bitwise equal up to step 120",
        "",
        "metric  first difference  largest relative difference  mean of the last tenth",
        "loss    none                                           4 → 4",
        "",
    ]
    assert (comparison.problems, comparison.next_command) == ([], "c2fmae doctor a")


def test_differences_of_settings_environment_and_metrics_are_listed() -> None:
    make_run(A, changed_rows={3: {"alpha": 1.0}}, timm="1.0")
    changed_rows: dict[int, dict[str, float | None]] = {41: {"loss": 4.5}, 60: {"loss": 5.0}, 118: {"loss/rgb": None}}
    make_run(B, changed_rows=changed_rows, lr=0.002, timm="2.0", last_step=119)
    assert compare_runs(A, B).lines == [
        "run             a: 120 steps",
        "run             b: 119 steps",
        "settings        training.lr: 0.001 → 0.002",
        "environment     timm 1.0 → 2.0",
        "metrics         bitwise equal up to step 40",
        "metrics         first difference at step 41: loss",
        "metrics         only in a, or at other steps: alpha",
        "",
        "metric    first difference  largest relative difference      mean of the last tenth",
        "loss      step 41           0.2, at step 60                  4 → 4",
        "loss/rgb  step 118          missing in one run, at step 118  2 → 2",
        "",
    ]


def test_a_missing_run_is_an_error() -> None:
    make_run(A, last_step=1, checkpoints=())
    with pytest.raises(UserError, match="^nowhere: is not a run directory"):
        compare_runs(A, Path("nowhere"))
