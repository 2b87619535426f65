"""The quickstart with a few steps."""

import base64
import os
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from c2fmae.core.experiment import RunOutcome
from c2fmae.eval.metrics import Metric
from c2fmae.quickstart import build_probe_table, quickstart
from c2fmae.recipes.config import load_recipe
from c2fmae.report import table_to_lines

SHORT = [
    "training.steps=4",
    "training.warmup_steps=1",
    "training.batch_size=8",
    "data.train.options={size: 32, difficulty: plain, length: 16}",
    "data.held_out.options={size: 32, difficulty: plain, length: 8, seed: 1}",
    "watching.figures=2",
    "watching.held_out_every=2",
    "watching.figures_every=2",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "run"
    assert quickstart(load_recipe("c2fmae-tiny", SHORT), out, num_train=48, num_test=16) == RunOutcome("finished", 4)
    return out / "report.html"


def test_the_page_compares_the_encoder_with_baselines(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in ("trained", "untrained", "raw pixels", "colour histogram"):
        assert f"{name}</" in text
    for column in ("k-NN, %", "linear, %", "patches, mIoU %"):
        assert column in text
    assert "Fitted to 48 labelled scenes, tested on 16 others" in text
    assert "pre-training was not free of labels" in text


def test_figures_of_the_page_are_complete(page: Path) -> None:
    figures = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    assert len(figures) == 3  # from images alone, and the first and the last of training
    for figure in figures:
        Image.open(BytesIO(base64.b64decode(figure))).load()


def test_a_finished_run_is_not_trained_again_and_its_page_is_written_again(page: Path) -> None:
    metrics, text = page.parent / "metrics.jsonl", page.read_text(encoding="utf-8")
    before = metrics.read_bytes()
    page.unlink()
    quickstart(load_recipe("c2fmae-tiny", SHORT), page.parent, num_train=48, num_test=16)
    assert metrics.read_bytes() == before
    assert page.read_text(encoding="utf-8") == text


def test_metrics_of_probes_are_shown_in_a_table() -> None:
    metrics: dict[str, dict[str, Metric | None]] = {
        "trained": {"k-NN, %": Metric("top1", 50, 5), "linear, %": Metric("top1", 75.55, 5)},
        "colours": {"k-NN, %": Metric("top1", 5, 5), "linear, %": None},
    }
    assert table_to_lines(build_probe_table(metrics, 10, 5)) == [
        "features  k-NN, %  linear, %",
        "trained   50.0     75.5",
        "colours   5.0      –",
    ]


@pytest.mark.unchecked
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_figures(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000"]
    subprocess.run(
        [*command, f"--user-data-dir={tmp_path}", f"--screenshot={shot}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    colours = Image.open(shot).convert("RGB").getcolors(maxcolors=3_000_000)
    assert colours is not None
    assert len(colours) > 500  # text alone has a few dozen
