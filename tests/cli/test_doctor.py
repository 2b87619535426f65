"""`c2fmae doctor` in this process; tests/doctor has what is found."""

from pathlib import Path

import pytest
import typer
from c2fmae_cli.doctor import doctor

from c2fmae.core.errors import UserError
from tests.doctor.runs import corrupt_checkpoint, make_run

RUN = Path("run")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_findings_and_the_next_command_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(RUN)
    doctor(RUN)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "run             run"
    assert lines[-2:] == [
        "resume          from step 100; steps 101 to 120 are repeated",
        "next: c2fmae pretrain run --resume",
    ]
    assert printed.err == ""


def test_problems_go_to_stderr_and_end_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    file = corrupt_checkpoint(make_run(RUN), 100)
    with pytest.raises(typer.Exit) as caught:
        doctor(RUN)
    assert caught.value.exit_code == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"problem: {file}: ")
    assert printed.out.splitlines()[-1] == "next: c2fmae pretrain run --resume"


def test_two_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(RUN)
    make_run(Path("other"))
    doctor(RUN, Path("other"))
    assert "metrics         bitwise equal up to step 120" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("run_dir", "compare", "replay", "message"),
    [
        (None, "run", None, "--compare: needs two runs. Run: c2fmae doctor RUN --compare OTHER"),
        (None, None, 3, "--replay: needs a run. Run: c2fmae doctor RUN --replay STEP"),
        ("run", "run", 3, "--replay: cannot be combined with --compare. Leave one of them out"),
        ("nowhere", None, 3, "nowhere: is not a run directory, it has no config.yaml. Use the directory of a run"),
    ],
)
def test_options_that_do_not_apply_are_errors(
    run_dir: str | None, compare: str | None, replay: int | None, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        doctor(Path(run_dir) if run_dir else None, Path(compare) if compare else None, replay)
    assert str(caught.value) == message
