"""What `c2fmae doctor RUN` says of a run, in this process; tests/cli/test_command.py has it without a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from c2fmae_cli.doctor import doctor

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.environment import collect_environment
from c2fmae.core.errors import UserError
from c2fmae.core.locks import lock_dir
from c2fmae.core.metric_rows import RowWriter
from c2fmae.core.run_dir import RunDir

END = 120


def make_run(
    path: Path,
    *,
    state: Mapping[str, Any] | None = None,
    end: int = END,
    saves: tuple[int, ...] = (50, 100),
    changed: Mapping[int, Mapping[str, Any]] | None = None,
    lr: float = 0.001,
    **facts: Any,
) -> RunDir:
    """A run's folder as it lies there after some steps; `changed` gives steps other metrics."""
    run = RunDir(path)
    path.mkdir()
    run.write_text("config.yaml", f"name: tiny\ntraining:\n  lr: {lr}\n")
    run.write_text("environment.json", json.dumps({**collect_environment(world_size=1, compile=False), **facts}))
    run.write_state(**(state or {"status": "running", "step": 0}))
    with RowWriter(run.metrics) as rows:
        for step in range(1, end + 1):
            rows.write({"step": step, "lr": 0.1, "loss": 4.0, "loss/rgb": 2.0, **(changed or {}).get(step, {})})
    for step in saves:
        save_checkpoint(run.checkpoints, Checkpoint(step, {"model/w": torch.ones(3)}, {}))
    return run


def damage(run: RunDir, step: int) -> str:
    """Flip a bit of a checkpoint; return what is said of it."""
    file = run.checkpoints / f"step-{step:08d}" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return (
        f"problem: {file}: is damaged: its checksum is not the one stored when it was written. Restore it, or "
        "use another checkpoint\n"
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


RESUME = "next: c2fmae pretrain run --resume"


def test_a_run_that_was_killed_goes_on_from_its_newest_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("run"))
    doctor(Path("run"))
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "run             run",
        "state           killed after step 120: nobody works on it, and it could not say why it ended",
        "checkpoint      step 50 is whole",
        "checkpoint      step 100 is whole",
        "metrics         120 steps, none skipped",
        "resume          from step 100; steps 101 to 120 are taken again",
        RESUME,
    ]
    assert said.err == ""


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"status": "saved-on-signal", "step": 100}, "state           saved on a signal, after step 100"),
        (
            {"status": "failed", "step": 110, "why": "OSError: no room"},
            "state           failed after step 110: OSError: no room",
        ),
    ],
)
def test_how_a_run_ended_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Any], line: str
) -> None:
    make_run(Path("run"), state=state, end=101)
    doctor(Path("run"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == line
    assert lines[-2:] == ["resume          from step 100; step 101 is taken again", RESUME]


def test_a_finished_run_has_nothing_to_resume(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"), state={"status": "finished", "step": 120}, saves=(120,), timm="0.9")
    doctor(Path("run"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "state           finished after step 120",
        "checkpoint      step 120 is whole",
        "metrics         120 steps, none skipped",
        "next: c2fmae view reconstruct run",
    ]


def test_a_run_at_work_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(Path("run"))
    before = sorted((path, path.stat().st_mtime_ns) for path in here.rglob("*"))
    with lock_dir(run.path):
        doctor(Path("run"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "state           at work, after step 120"
    assert lines[-2:] == [
        "metrics         120 steps, none skipped",
        "next: c2fmae doctor run  # later: it is at work",
    ]
    assert sorted((path, path.stat().st_mtime_ns) for path in here.rglob("*")) == before


def test_a_damaged_checkpoint_is_a_problem_and_the_one_before_it_is_used(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = damage(make_run(Path("run")), 100)
    with pytest.raises(typer.Exit) as caught:
        doctor(Path("run"))
    assert caught.value.exit_code == 1
    said = capsys.readouterr()
    assert said.err == problem
    assert said.out.splitlines()[2:] == [
        "checkpoint      step 50 is whole",
        "metrics         120 steps, none skipped",
        "resume          from step 50; steps 51 to 120 are taken again",
        RESUME,
    ]


def test_without_a_whole_checkpoint_there_is_no_resume(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(make_run(Path("run"), saves=(100,)), 100)
    with pytest.raises(typer.Exit):
        doctor(Path("run"))
    assert "resume          impossible: no checkpoint is whole" in capsys.readouterr().out.splitlines()


def test_a_run_without_any_checkpoint_begins_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"), end=3, saves=())
    doctor(Path("run"))
    resume = "resume          from the beginning; steps 1 to 3 are taken again"
    assert capsys.readouterr().out.splitlines()[-2:] == [resume, RESUME]


def test_a_run_of_which_there_is_hardly_anything_is_told_of_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("name: tiny\n")
    doctor(Path("run"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["metrics         0 steps, none skipped", "resume          from the beginning", RESUME]


def test_missing_rows_are_a_problem(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(Path("run"), end=90)
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(b"".join([*lines[:10], *lines[12:], b'{"step": 91, "lo']))
    with pytest.raises(typer.Exit):
        doctor(Path("run"))
    assert capsys.readouterr().err == (
        "problem: run/metrics.jsonl: steps 11 to 12 have no row\n"
        "problem: run/metrics.jsonl: ends at step 90, before the newest checkpoint\n"
    )


def test_skipped_steps_and_spikes_are_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = {step: {"loss": None, "skipped": "not finite"} for step in (7, *range(30, 41))}
    make_run(Path("run"), changed={**skipped, 99: {"loss": 50.0}})
    doctor(Path("run"))
    assert capsys.readouterr().out.splitlines()[4:6] == [
        "metrics         120 steps, 12 skipped: 7, 30, 31, 32, 33, 34, 35, 36, 37, 38 and 2 more",
        "spike           step 99: the loss is 50, far above its recent median of 4",
    ]


def test_another_environment_is_told_and_processes_stay_as_they_were(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("a run"), timm="0.9", cpu="of old", world_size=4, compile=True)
    doctor(Path("a run"))
    now = collect_environment()
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"                not as it was: timm 0.9 → {now['timm']}",
        f"                not as it was: CPU of old → {now['cpu']}",
        "next: torchrun --nproc-per-node 4 -m c2fmae_cli pretrain 'a run' --resume",
    ]


@pytest.mark.parametrize(
    ("run", "other", "message"),
    [
        ("nowhere", None, "nowhere: is not a run: it has no config.yaml"),
        ("run", "nowhere", "nowhere: is not a run: it has no config.yaml"),
        (None, "run", "--compare: compares two runs, and there is one. Say: c2fmae doctor RUN --compare OTHER"),
        ("foreign", None, "foreign/metrics.jsonl: has rows without a step, so it is no run's. Restore it"),
        ("broken", None, "broken/metrics.jsonl: line 1 is not a JSON object. Fix or remove the line"),
    ],
)
def test_what_is_no_run_is_refused(here: Path, run: str | None, other: str | None, message: str) -> None:
    make_run(Path("run"), end=1, saves=())
    for name, content in (("foreign", '{"loss": 1}\n'), ("broken", 'junk\n{"step": 1}\n')):
        make_run(Path(name), end=1, saves=()).metrics.write_text(content)
    with pytest.raises(UserError) as caught:
        doctor(Path(run) if run else None, Path(other) if other else None)
    assert str(caught.value) == message


def test_equal_runs_are_identical_to_the_last_bit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("a"))
    make_run(Path("b"))
    doctor(Path("a"), Path("b"))
    assert capsys.readouterr().out.splitlines() == [
        "run             a: 120 steps",
        "run             b: 120 steps",
        "settings        the same",
        "metrics         identical to the last bit up to step 120",
        "",
        "                           differ from  at most, relatively       mean over the last tenth",
        "loss                             never                            4 → 4",
        "",
        "next: c2fmae doctor a",
    ]


def test_runs_that_part_are_compared_side_by_side(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("a"), changed={3: {"alpha": 1.0}}, timm="1.0")
    make_run(
        Path("b"),
        changed={41: {"loss": 4.5}, 60: {"loss": 5.0}, 118: {"loss/rgb": None}},
        lr=0.002,
        timm="2.0",
        end=119,
    )
    doctor(Path("a"), Path("b"))
    assert capsys.readouterr().out.splitlines() == [
        "run             a: 120 steps",
        "run             b: 119 steps",
        "settings        training.lr: 0.001 → 0.002",
        "environment     timm 1.0 → 2.0",
        "metrics         identical to the last bit up to step 40",
        "metrics         differ first at step 41: loss",
        "metrics         only in a, or at other steps: alpha",
        "",
        "                           differ from  at most, relatively       mean over the last tenth",
        "loss                           step 41  0.2 at step 60            4 → 4",
        "loss/rgb                      step 118  one is none at step 118   2 → 2",
        "",
        "next: c2fmae doctor a",
    ]
