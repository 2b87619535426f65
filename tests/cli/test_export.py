"""`c2fmae export …`: what it says and asks; tests/exports has what it writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from c2fmae_cli.export import EXPORT_SUMMARIES, export
from typer.testing import CliRunner

from c2fmae import exports
from c2fmae.core.errors import UserError
from c2fmae.models.backbones import load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe

SHORT = [
    "training.steps=2",
    "training.warmup_steps=1",
    "training.ema=0.5",
    "data.train.options={size: 64, length: 16, difficulty: easy}",
    "data.held_out.options={size: 64, length: 16, difficulty: easy, seed: 1}",
    "watching.figures=0",
    "saving.steps=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "run"
    pretrain(load_recipe("c2fmae-debug", SHORT), out)
    return out


def said(*words: str | Path) -> str:
    return CliRunner().invoke(export, [str(word) for word in words], catch_exceptions=False).output


def test_a_trained_run_goes_to_timm_and_the_command_says_how_near_and_what_next(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = said("timm", run, out)
    assert "read back by timm " in text
    assert "largest difference: " in text
    assert float(text.split("largest difference: ")[1].split()[0]) < 1e-5
    assert f"wrote {out}: model.safetensors (SHA-256 " in text
    assert f'next, in Python:\n\nimport timm\nmodel = timm.create_model("local-dir:{out}"' in text
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| Data | generated |" in card
    assert "| Samples | 16 |" in card
    assert "at step 2:" in card  # a loss that was held out


def test_step_and_average_choose_the_weights(run: Path, tmp_path: Path) -> None:
    photos = torch.rand(1, 3, 64, 64)
    said("safetensors", run, tmp_path / "one", "--step", "1")
    said("safetensors", run, tmp_path / "average", "--average")
    said("safetensors", run, tmp_path / "rgb", "--part", "rgb")
    for name, options in {"one": {"step": 1}, "average": {"use_ema": True}, "rgb": {}}.items():
        again, trained = load_backbone(tmp_path / name), load_backbone(run, **options)  # type: ignore[arg-type]
        assert torch.equal(again.tokens(photos), trained.tokens(photos))
    assert load_backbone(tmp_path / "rgb").granularities == ("rgb",)


def test_image_size_is_what_the_positions_are_written_for(run: Path, tmp_path: Path) -> None:
    said("timm", run, tmp_path / "out", "--image-size", "64", "96")
    assert "Image size: 64×96" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_source_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: does not exist. Use "):
        said("hf", tmp_path / "nowhere", tmp_path / "out")


def test_help_names_all_that_things_go_to() -> None:
    text = said("--help")
    assert all(kind in text for kind in ("timm", "hf", "safetensors", "onnx", "torch-export"))
    assert tuple(EXPORT_SUMMARIES) == tuple(exports.EXPORT_KINDS)


@pytest.mark.parametrize("kind", exports.EXPORT_KINDS)
def test_each_kind_says_and_asks_what_is_its_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, dict[str, Any]]]()

    def write(kind: str, source: str, out: Path, **options: Any) -> None:
        asked.append((kind, options))
        raise UserError("enough")

    monkeypatch.setattr(exports, "export", write)
    text = said(kind, "--help")
    assert EXPORT_SUMMARIES[kind].split()[1] in text
    assert ("--part" in text, "--image-size" in text) == (kind == "safetensors", kind != "safetensors")
    with pytest.raises(UserError, match="enough"):
        said(kind, "in", "out", "--allow-missing", "a.*")
    own = {"part": None} if kind == "safetensors" else {"image_size": None}
    assert asked == [(kind, {"step": None, "use_ema": False, "allow_missing": ("a.*",), **own})]
