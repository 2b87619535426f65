"""`c2fmae export …`: arguments and output; tests/exports has what it writes."""

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

pytestmark = pytest.mark.unchecked

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


def run_export(*words: str | Path) -> str:
    """Return the output of a command."""
    return CliRunner().invoke(export, [str(word) for word in words], catch_exceptions=False).output


def test_an_export_is_compared_and_its_use_is_printed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run_export("timm", run, out)
    assert "read back by timm " in text
    assert "largest difference: " in text
    assert float(text.split("largest difference: ")[1].split()[0]) < 1e-5
    assert f"wrote {out}: model.safetensors (SHA-256 " in text
    assert f'next, in Python:\n\nimport timm\nmodel = timm.create_model("local-dir:{out}"' in text
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| Data | generated |" in card
    assert "| Samples | 16 |" in card
    assert "at step 2:" in card  # a held-out loss


def test_step_ema_and_part_choose_the_weights(run: Path, tmp_path: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    run_export("safetensors", run, tmp_path / "one", "--step", "1")
    run_export("safetensors", run, tmp_path / "average", "--ema")
    run_export("safetensors", run, tmp_path / "rgb", "--part", "rgb")
    for name, options in {"one": {"step": 1}, "average": {"use_ema": True}, "rgb": {}}.items():
        again, trained = load_backbone(tmp_path / name), load_backbone(run, **options)  # type: ignore[arg-type]
        assert torch.equal(again.tokens(images), trained.tokens(images))
    assert load_backbone(tmp_path / "rgb").granularities == ("rgb",)


def test_positions_are_resized_for_the_image_size(run: Path, tmp_path: Path) -> None:
    run_export("timm", run, tmp_path / "out", "--image-size", "64", "96")
    assert "Image size: 64×96" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_file_for_other_tools_is_written_with_what_they_report(run: Path, tmp_path: Path) -> None:
    text = run_export("mae", run, tmp_path / "out")
    assert "mmdet reports these tensors as missing, as it should: blocks.*.attn.rel_pos_h, blocks" in text
    assert "pretrain_img_size=64" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "mae.pth"]


def test_a_missing_source_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: does not exist. Use "):
        run_export("hf", tmp_path / "nowhere", tmp_path / "out")


def test_help_lists_every_kind_of_export() -> None:
    text = run_export("--help")
    assert all(kind in text for kind in ("timm", "hf", "safetensors", "onnx", "torch-export"))
    assert tuple(EXPORT_SUMMARIES) == tuple(exports.EXPORT_KINDS)


@pytest.mark.parametrize("kind", exports.EXPORT_KINDS)
def test_each_kind_has_its_own_options(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[tuple[str, dict[str, Any]]]()

    def write(kind: str, source: str, out: Path, **options: Any) -> None:
        calls.append((kind, options))
        raise UserError("enough")

    monkeypatch.setattr(exports, "export", write)
    text = run_export(kind, "--help")
    assert EXPORT_SUMMARIES[kind].split()[1] in text
    assert ("--part" in text, "--image-size" in text) == (kind == "safetensors", kind != "safetensors")
    with pytest.raises(UserError, match="enough"):
        run_export(kind, "in", "out", "--allow-missing", "a.*")
    own = {"part": None} if kind == "safetensors" else {"image_size": None}
    assert calls == [(kind, {"step": None, "use_ema": False, "allow_missing": ("a.*",), **own})]
