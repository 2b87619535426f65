from pathlib import Path
from typing import Any

import pytest
import torch

from c2fmae.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from c2fmae.core.environment import collect_environment
from c2fmae.core.errors import UserError
from c2fmae.core.locks import lock_dir
from c2fmae.doctor.run import diagnose_run
from c2fmae.doctor.run_config import list_missing_data
from c2fmae.eval.detection.config import DetectConfig
from c2fmae.recipes.config import load_recipe
from tests.doctor.runs import corrupt_checkpoint, make_run

RUN = Path("run")
RESUME = "c2fmae pretrain run --resume"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_killed_run_resumes_from_its_newest_checkpoint() -> None:
    make_run(RUN)
    diagnosis = diagnose_run(RUN)
    assert diagnosis.lines == [
        "run             run",
        "state           killed after step 120: no process runs it, and no reason was recorded",
        "checkpoint      step 50, intact",
        "checkpoint      step 100, intact",
        "metrics         120 steps, none skipped",
        "resume          from step 100; steps 101 to 120 are repeated",
    ]
    assert (diagnosis.problems, diagnosis.next_command) == ([], RESUME)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"status": "saved-on-signal", "step": 100}, "saved on a signal, after step 100"),
        ({"status": "failed", "step": 110, "why": "OSError: no room"}, "failed after step 110: OSError: no room"),
    ],
)
def test_the_state_of_a_run_is_reported(state: dict[str, Any], text: str) -> None:
    make_run(RUN, state=state, last_step=101)
    diagnosis = diagnose_run(RUN)
    assert diagnosis.findings[1] == ("state", text)
    assert diagnosis.findings[-1] == ("resume", "from step 100; step 101 is repeated")
    assert diagnosis.next_command == RESUME


def test_a_finished_run_is_not_resumed() -> None:
    make_run(RUN, state={"status": "finished", "step": 120}, checkpoints=(120,), timm="0.9")
    diagnosis = diagnose_run(RUN)
    assert diagnosis.findings[1:] == [
        ("state", "finished after step 120"),
        ("checkpoint", "step 120, intact"),
        ("metrics", "120 steps, none skipped"),
    ]
    assert diagnosis.next_command == "c2fmae view reconstruct run"


def test_a_run_in_progress_is_not_changed() -> None:
    run_dir = make_run(RUN)
    before = sorted((path, path.stat().st_mtime_ns) for path in RUN.rglob("*"))
    with lock_dir(run_dir.path):
        diagnosis = diagnose_run(RUN)
    assert diagnosis.findings[1] == ("state", "running, after step 120")
    assert diagnosis.findings[-1] == ("metrics", "120 steps, none skipped")
    assert diagnosis.next_command == "c2fmae doctor run  # the run is in progress"
    assert sorted((path, path.stat().st_mtime_ns) for path in RUN.rglob("*")) == before


def test_a_corrupted_checkpoint_is_a_problem_and_the_previous_one_is_resumed() -> None:
    file = corrupt_checkpoint(make_run(RUN), 100)
    diagnosis = diagnose_run(RUN)
    (problem,) = diagnosis.problems
    assert problem.startswith(f"{file}: ")
    assert "Restore it" in problem
    assert diagnosis.findings[2:] == [
        ("checkpoint", "step 50, intact"),
        ("metrics", "120 steps, none skipped"),
        ("resume", "from step 50; steps 51 to 120 are repeated"),
    ]


def test_a_run_without_an_intact_checkpoint_cannot_be_resumed() -> None:
    corrupt_checkpoint(make_run(RUN, checkpoints=(100,)), 100)
    assert ("resume", "impossible: no checkpoint is intact") in diagnose_run(RUN).findings


def test_a_checkpoint_that_is_not_finite_is_a_problem_and_the_previous_one_is_resumed() -> None:
    run_dir = make_run(RUN)
    metadata = load_checkpoint(run_dir.checkpoints / "step-00000100").metadata
    save_checkpoint(run_dir.checkpoints, Checkpoint(110, {"model/w": torch.tensor([1, torch.nan])}, metadata))
    diagnosis = diagnose_run(RUN)
    (problem,) = diagnosis.problems
    assert problem.startswith("run/checkpoints/step-00000110: its weights are not finite")
    assert ("resume", "from step 100; steps 101 to 120 are repeated") in diagnosis.findings


def test_a_run_without_checkpoints_starts_from_the_beginning() -> None:
    make_run(RUN, last_step=3, checkpoints=())
    diagnosis = diagnose_run(RUN)
    assert diagnosis.findings[-1] == ("resume", "from the beginning; steps 1 to 3 are repeated")
    assert diagnosis.next_command == RESUME


def test_a_run_with_nothing_but_its_config_is_diagnosed() -> None:
    RUN.mkdir()
    (RUN / "config.yaml").write_text(load_recipe("c2fmae-debug").to_yaml())
    diagnosis = diagnose_run(RUN)
    assert diagnosis.findings[2:] == [("metrics", "0 steps, none skipped"), ("resume", "from the beginning")]
    assert diagnosis.next_command == RESUME


def test_missing_rows_are_problems() -> None:
    run_dir = make_run(RUN, last_step=90)
    lines = run_dir.metrics.read_bytes().splitlines(keepends=True)
    run_dir.metrics.write_bytes(b"".join([*lines[:10], *lines[12:], b'{"step": 91, "lo']))
    assert diagnose_run(RUN).problems == [
        "run/metrics.jsonl: steps 11 to 12 have no row",
        "run/metrics.jsonl: ends at step 90, before the checkpoint of step 100. "
        "Restore it, or accept a gap in the curves",
    ]


def test_skipped_steps_and_loss_spikes_are_listed() -> None:
    skipped = {step: {"loss": None, "skipped": "not finite"} for step in (7, *range(30, 41))}
    make_run(RUN, changed_rows={**skipped, 99: {"loss": 50.0}})
    findings = diagnose_run(RUN).findings
    assert findings[4] == ("metrics", "120 steps, 12 skipped: 7, 30, 31, 32, 33, 34, 35, 36, 37, 38 and 2 more")
    assert findings[5] == ("spike", "step 99: the loss is 50, far above its recent median of 4")


def test_changes_of_the_environment_are_listed_and_the_number_of_processes_is_preserved() -> None:
    make_run(Path("a run"), timm="0.9", cpu="an older one", world_size=4, compile=True)
    diagnosis = diagnose_run(Path("a run"))
    environment = collect_environment()
    assert diagnosis.findings[-2:] == [
        ("", f"changed: timm 0.9 → {environment['timm']}"),
        ("", f"changed: CPU an older one → {environment['cpu']}"),
    ]
    assert diagnosis.next_command == "torchrun --nproc-per-node 4 -m c2fmae_cli pretrain 'a run' --resume"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: is not a run directory, it has no config.yaml. Use the directory of a run"),
        (
            "foreign",
            "foreign/metrics.jsonl: line 1: loss: expected a number, in a row with a step. ",
        ),
        ("broken", "broken/metrics.jsonl: line 1 is not a JSON object. "),
    ],
)
def test_invalid_run_directories_are_rejected(name: str, message: str) -> None:
    for directory, content in (("foreign", '{"loss": 1}\n'), ("broken", 'junk\n{"step": 1}\n')):
        make_run(Path(directory), last_step=1, checkpoints=()).metrics.write_text(content)
    with pytest.raises(UserError) as caught:
        diagnose_run(Path(name))
    assert str(caught.value).startswith(message)


def test_annotations_of_a_detector_are_found_where_they_are() -> None:
    voc = Path("voc/ImageSets/Main")
    voc.mkdir(parents=True)
    for path in (Path("coco.json"), voc / "train.txt"):
        path.write_text("{}")
    present = DetectConfig.from_dict({"init": "a", "data": {"train": "coco.json", "test": str(voc / "train.txt")}})
    assert list_missing_data(present) == {}
    moved = present.override(["data.train=moved.json"])
    assert list(list_missing_data(moved)) == ["data.train"]
    assert "moved.json: does not exist" in list_missing_data(moved)["data.train"]
