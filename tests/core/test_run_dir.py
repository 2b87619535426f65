import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import RunDir, find_checkpoint, open_run_dir
from tests.core.disks import mounted_disk


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(texts))
    return path


def test_a_run_directory_is_created_with_its_paths(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    with open_run_dir(path) as run:
        assert list(path.iterdir()) == []
        assert not run.is_started
        run.write_text("config.yaml", "seed: 1\n")
        assert run.is_started
        assert run.config_path.read_text() == "seed: 1\n"
    places = [run.config_path, run.checkpoints, run.metrics, run.timing, run.figures, run.report]
    names = ["config.yaml", "checkpoints", "metrics.jsonl", "timing.jsonl", "figures", "report.html"]
    assert places == [path / name for name in names]


def test_a_second_run_is_rejected_until_the_first_ends(tmp_path: Path) -> None:
    with open_run_dir(tmp_path), pytest.raises(UserError) as caught, open_run_dir(tmp_path):
        pass
    assert str(caught.value) == f"{tmp_path}: is in use by another run. Wait for it, or choose another --out"
    with open_run_dir(tmp_path):
        pass


@pytest.mark.unchecked
def test_a_killed_run_releases_its_directory(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from c2fmae.core.run_dir import open_run_dir\n"
        "with open_run_dir(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        with process.stdout:
            assert process.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="is in use by another run"), open_run_dir(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with open_run_dir(tmp_path):
        pass


def test_an_impossible_path_is_rejected(tmp_path: Path) -> None:
    file = lines(tmp_path / "file", "")
    for path, why in [(file, "File exists"), (file / "run", "Not a directory"), (Path("/proc/run"), "No such file")]:
        with pytest.raises(UserError) as caught, open_run_dir(path):
            pass
        assert str(caught.value).startswith(f"{path}: cannot be used: {why}")
        assert str(caught.value).endswith(". Choose another --out")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path, "ro"):
        yield tmp_path


@pytest.mark.unchecked
def test_a_read_only_disk_is_rejected(read_only_disk: Path) -> None:
    for path in (read_only_disk, read_only_disk / "run"):
        with pytest.raises(UserError) as caught, open_run_dir(path):
            pass
        assert str(caught.value) == f"{path}: cannot be used: Read-only file system. Choose another --out"


def test_an_error_inside_the_block_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="somewhere"), open_run_dir(tmp_path):
        raise FileNotFoundError("somewhere")


def test_the_state_is_written_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    assert run.read_state() is None
    monkeypatch.setattr("time.time", lambda: 1234.5678)
    run.write_state("running", step=0)
    run.write_state("failed", step=12, why="the loss is not finite")
    assert run.read_state() == {"status": "failed", "step": 12, "why": "the loss is not finite", "time": 1234.568}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("3", "expected a JSON object, got a number"),
        ("{}", "status: is required"),
        ('{"status": 3}', "status: input should be a valid string, got 3"),
        ('{"status": "failed", "step": "4"}', "step: input should be a valid integer, got '4'"),
        ('{"status": "failed", "why": ["a"]}', "why: input should be a valid string, got ['a']"),
    ],
)
def test_a_damaged_state_is_reported(text: str, problem: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "state.json", text)
    with pytest.raises(UserError) as caught:
        RunDir(tmp_path).read_state()
    assert str(caught.value) == f"{path}: {problem}. Remove it"


def test_the_environment_is_read_where_it_is_intact(tmp_path: Path) -> None:
    assert RunDir(tmp_path).read_environment() == {}
    lines(tmp_path / "environment.json", '{"world_size": 2}')
    assert RunDir(tmp_path).read_environment() == {"world_size": 2}
    for text in ("[]", '{"world_size": "2"}', '{"world_size": 0}', '{"resumed": 3}', '{"resumed": [{"changes": 1}]}'):
        lines(tmp_path / "environment.json", text)
        assert RunDir(tmp_path).read_environment() == {}


def test_figures_of_this_and_the_first_version_are_listed_by_step(tmp_path: Path) -> None:
    expected = [tmp_path / "pictures" / "step-00000002.png", tmp_path / "figures" / "step-00000010.png"]
    for path in [*expected, tmp_path / "figures" / "other.png"]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert RunDir(tmp_path).list_figures() == expected


def test_runs_checkpoint_directories_and_checkpoints_give_a_checkpoint(tmp_path: Path) -> None:
    for folder, steps in {"checkpoints": (5, 10), "best": (3, 7)}.items():
        for step in steps:
            save_checkpoint(tmp_path / folder, Checkpoint(step, {"model/a": torch.ones(1)}, {}))
    (tmp_path / "config.yaml").touch()
    assert [find_checkpoint(tmp_path, step).step for step in (None, 5)] == [10, 5]
    assert [find_checkpoint(tmp_path / "best", step).step for step in (None, 3)] == [7, 3]
    assert find_checkpoint(tmp_path / "best" / "step-00000003").step == 3
    (tmp_path / "best" / "step-00000007" / "tensors.safetensors").write_bytes(b"damaged")
    assert find_checkpoint(tmp_path / "best").step == 3
    with pytest.raises(UserError, match="step-00000005: is missing. Restore it, or use another checkpoint"):
        find_checkpoint(tmp_path / "best", 5)


def test_a_run_without_a_checkpoint_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError) as caught:
        find_checkpoint(tmp_path)
    assert str(caught.value) == f"{tmp_path}: has no intact checkpoint"
