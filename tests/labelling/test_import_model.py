import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from c2fmae_cli.import_ import import_
from safetensors.torch import load_file
from typer.testing import CliRunner

from c2fmae.core.errors import UserError
from c2fmae.labelling.families import BOX_SEGMENTERS
from c2fmae.labelling.import_model import import_model
from c2fmae.labelling.weights import load_pretrained

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def pickled(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return the folder of a tiny model whose weights are a pickle."""
    folder = Path(shutil.copytree(tiny_model("sam-hq"), tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def test_a_folder_with_a_pickle_becomes_one_that_loads(
    pickled: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    done = CliRunner().invoke(import_, ["labeller", str(pickled), str(out)], catch_exceptions=False)

    assert done.exit_code == 0
    assert f"wrote {out}: sam_hq with " in done.output
    assert "apache-2.0" in done.output
    assert not (out / "pytorch_model.bin").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pickled"]
    original = load_pretrained(str(tiny_model("sam-hq")), BOX_SEGMENTERS, option="segmenter")
    imported = load_pretrained(str(out), BOX_SEGMENTERS, option="segmenter")
    for one, other in zip(original.model.parameters(), imported.model.parameters(), strict=True):
        assert torch.equal(one, other)


class RunsCode:
    """A value whose pickle calls a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_calls_a_function_is_refused_and_not_run(pickled: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "x": RunsCode(tmp_path / "ran")}, pickled / "pytorch_model.bin")

    with pytest.raises(UserError, match=r"pytorch_model\.bin: would run code when it is read"):
        import_model(pickled, tmp_path / "out")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["pickled"]


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").touch(), r"has model\.safetensors already"),
        (lambda folder: (folder / "pytorch_model.bin").unlink(), r"has no weights"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), r"of type 'bert'"),
        (lambda folder: (folder.parent / "out").touch(), r"out: already exists"),
        (
            lambda folder: torch.save({"extra": torch.zeros(1)}, folder / "pytorch_model.bin"),
            r"pickled: its weights do not fit SamHQModel: \d+ missing",
        ),
    ],
)
def test_a_folder_that_cannot_be_imported_is_refused(
    pickled: Path, tmp_path: Path, prepare: Callable[[Path], object], reason: str
) -> None:
    prepare(pickled)

    with pytest.raises(UserError, match=reason):
        import_model(pickled, tmp_path / "out")
