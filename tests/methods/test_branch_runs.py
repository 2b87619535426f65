"""Runs of a two-branch method: everything that follows pre-training works with them."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.core.training import TrainingConfig
from c2fmae.doctor.run import next_command
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.exports import export
from c2fmae.loading import load_run
from c2fmae.methods import METHODS
from c2fmae.models.backbones import load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.replay import replay_step
from tests.methods.tiny_branches import ENCODER, TINY


@pytest.mark.unchecked
def test_a_run_is_written_and_exported(tmp_path: Path) -> None:
    method = METHODS.get("cmae")().override([*ENCODER, *TINY["cmae"], "momentum=0.5"])
    generated = "{name: generated, options: {size: 48, length: 32}}"
    config = PretrainConfig(
        method=method, training=TrainingConfig(steps=4, batch_size=16, lr=1e-2, warmup_steps=0)
    ).override([f"data.train={generated}", f"data.held_out={generated}", "data.workers=0", "saving.keep_every=2"])
    out = tmp_path / "run"
    pretrain(config, out)
    rows = read_rows(out / "metrics.jsonl")
    assert {"loss/contrast", "feature_spread", "contrast_accuracy"} <= rows[0].keys()
    assert any("held_out/contrast" in row for row in rows)
    assert "Measures of collapse" in (out / "report.html").read_text(encoding="utf-8")

    # The teacher has moved, so with the weights of another step the loss would not be that of the run.
    text = replay_step(config, out, 3)
    replayed = {name: float(value) for name, value in re.findall(r"(rgb|contrast) ([\d.]+)", text.splitlines()[1])}
    row = next(row for row in rows if row["step"] == 3 and "loss" in row)
    logged = {name: row[f"loss/{name}"] for name in ("rgb", "contrast")}
    assert "with the weights after step 2" in text
    assert replayed == pytest.approx(logged, rel=1e-3)

    for use_ema in (False, True):
        folder = tmp_path / f"timm-{use_ema}"
        export("timm", out, folder, use_ema=use_ema)
        exported: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            backbone = load_backbone(str(out), use_ema=use_ema)
            torch.testing.assert_close(exported.forward_features(images), backbone.tokens(images))
    read = ModelUnderTest(str(out), tmp_path, World()).method
    assert read is not None
    assert (read.kind, read.image_size) == ("cmae", (32, 32))
    assert next_command(RunDir(out), is_finished=True) == f"c2fmae eval knn {out}"
    with pytest.raises(UserError, match=r"method\.kind: expected masked, got cmae"):
        load_run(out)
