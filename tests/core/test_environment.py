import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from c2fmae.core import environment as module
from c2fmae.core.environment import collect_environment, describe_environment_changes


def test_the_environment_is_json_with_the_extra_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("MY_PASSWORD", "secret")
    found = collect_environment(world_size=2, compile="off")
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        *("c2fmae", "revision", "python", "platform", "torch", "timm", "torchvision", "numpy"),
        *("cpu", "gpus", "plugins", "variables", "world_size", "compile"),
    ]
    assert found["torch"]["version"] == torch.__version__
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert (found["world_size"], found["compile"]) == (2, "off")
    assert found["variables"].items() >= {"OMP_NUM_THREADS": "1", "NVIDIA_TF32_OVERRIDE": "0"}.items()
    assert "secret" not in json.dumps(found)
    assert describe_environment_changes(found, collect_environment(world_size=2, compile="off")) == []


def test_changes_that_prevent_an_exact_resume_are_described() -> None:
    old = {
        "torch": {"version": "2.11.0", "build": "abc, CUDA None, cuDNN None", "threads": 2},
        "timm": "1.0.20",
        "cpu": "One, AVX2",
        "gpus": [],
        "world_size": 2,
        "compile": "model",
        "numpy": "2.0",
    }
    new = {
        "torch": {"version": "2.15.0", "build": "def, CUDA None, cuDNN None", "threads": 1},
        "timm": "1.0.31",
        "cpu": "One, AVX512",
        "gpus": ["H200", "H200"],
        "world_size": 1,
        "compile": "off",
        "numpy": "2.1",
    }
    assert describe_environment_changes(old, new) == [
        "torch 2.11.0 → 2.15.0",
        "threads 2 → 1",
        "processes 2 → 1",
        "compile model → off",
        "timm 1.0.20 → 1.0.31",
        "numpy 2.0 → 2.1",
        "CPU One, AVX2 → One, AVX512",
        "GPUs none → H200, H200",
    ]
    assert describe_environment_changes(new, new) == []


@pytest.mark.parametrize(("recorded", "changes"), [(False, []), (True, ["compile on → off"])])
def test_earlier_versions_recorded_whether_the_model_was_compiled(recorded: bool, changes: list[str]) -> None:
    assert describe_environment_changes({"compile": recorded}, {"compile": "off"}) == changes


def test_a_changed_build_and_missing_entries_are_described() -> None:
    old = {"torch": {"version": "2.15.0", "build": "abc, CUDA None, cuDNN None"}}
    new = {"torch": {"version": "2.15.0", "build": "abc, CUDA 13.2, cuDNN 92600"}, "timm": "1.0.31"}
    assert describe_environment_changes(old, new) == [
        "torch's build abc, CUDA None, cuDNN None → abc, CUDA 13.2, cuDNN 92600",
        "timm unknown → 1.0.31",
    ]


@pytest.mark.unchecked
@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_revision_is_the_commit_and_marks_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "c2fmae" / "core" / "environment.py"
    monkeypatch.setattr(module, "__file__", str(source))
    assert collect_environment()["revision"] is None
    git("init")
    assert collect_environment()["revision"] is None  # nothing is committed yet
    source.parent.mkdir(parents=True)
    source.write_text("one")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert collect_environment()["revision"] == commit
    (tmp_path / "notes").touch()
    assert collect_environment()["revision"] == commit
    source.write_text("two")
    assert collect_environment()["revision"] == f"{commit}, changed"
    monkeypatch.setenv("PATH", "")
    assert collect_environment()["revision"] is None


def test_the_cpu_has_a_name_on_other_systems_than_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, **options: object) -> str:
        raise FileNotFoundError

    assert collect_environment()["cpu"]
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv")
    assert module._cpu_name() == "riscv"
