"""The method of another package, that of the documentation: commands train, resume and export it."""

import re
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch

from c2fmae.core.checkpoint import load_checkpoint
from c2fmae.core.json_file import read_json
from tests.cli.session import run_commands

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


def install(folder: Path) -> None:
    """Lay out the package `twins` of the page, as an installation does."""
    (code,) = re.findall(r'```python\n("""Twins.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "twins.py").write_text(code, encoding="utf-8")
    info = folder / "twins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[c2fmae.plugins]\ntwins = twins\n")


@pytest.mark.unchecked
def test_commands_train_resume_and_export_the_method_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (trained, described), errors = run_commands(
        "pretrain twins-tiny --out whole --set saving.keep_every=2", "describe twins-tiny", cwd=tmp_path
    )
    assert (trained.exit_code, described.exit_code) == (0, 0), errors
    names = read_json(tmp_path / "whole" / "environment.json")["plugins"]["twins"]
    assert names == {"kind of method": ["twins"], "method": ["twins"], "recipe": ["twins-tiny"]}
    assert any(line.startswith("teacher ") and "sees the view second" in line for line in described.lines)

    copytree(tmp_path / "whole", tmp_path / "resumed")
    newest = max((tmp_path / "resumed" / "checkpoints").iterdir())
    rmtree(newest)
    (resumed, exported), errors = run_commands(
        "pretrain resumed --resume", "export timm resumed twins-vit --ema", cwd=tmp_path
    )
    assert (resumed.exit_code, exported.exit_code) == (0, 0), errors
    assert resumed.lines[0] == "finished at step 4: resumed"
    folders = (tmp_path / "whole", tmp_path / "resumed")
    whole, again = (load_checkpoint(folder / "checkpoints" / newest.name).tensors for folder in folders)
    assert whole.keys() == again.keys()
    assert any(name.startswith("ema/encoder.") for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
