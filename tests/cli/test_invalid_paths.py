"""A path that no file can have is an error of its user, for every command that reads one."""

import sys
from pathlib import Path

import pytest
from c2fmae_cli import main

LONG = "x" * 5000
COMMANDS = {
    "pretrain": ("pretrain", "PATH"),
    "recipe": ("pretrain", "PATH.yaml"),
    "resume": ("pretrain", "PATH", "--resume"),
    "data": ("pretrain", "c2fmae-debug", "--data", "PATH", "--out", "out"),
    "out": ("pretrain", "c2fmae-debug", "--out", "PATH"),
    "init": ("pretrain", "mae-b", "--init", "PATH", "--out", "out"),
    "eval": ("eval", "knn", "PATH", "--data", "generated"),
    "timm": ("eval", "knn", "timm:test_vit@PATH", "--data", "generated"),
    "check": ("data", "check", "PATH"),
    "pack": ("data", "pack", "PATH", "out"),
    "export": ("export", "timm", "PATH", "out"),
    "view": ("view", "reconstruct", "PATH"),
    "doctor": ("doctor", "PATH"),
    "import": ("import", "mae", "PATH", "out"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("path", [LONG, "link", "link/file"], ids=["long", "link to itself", "below a link to itself"])
def test_an_impossible_path_is_a_user_error(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("link")
    monkeypatch.setattr(sys, "argv", ["c2fmae", *(word.replace("PATH", path) for word in COMMANDS[name])])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert "Error: " not in message  # of a traceback or a bug
