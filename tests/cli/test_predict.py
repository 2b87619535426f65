"""`c2fmae predict …`: arguments, output and exit code; tests/test_predict.py has what it writes."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c2fmae_cli import app
from PIL import Image
from typer.testing import CliRunner

from c2fmae import predict as predict_module
from c2fmae.core import cores
from c2fmae.eval.engine import BatchingConfig
from tests.models.classifiers.noise_classifiers import make_noise_classifier, write_finetuned_run
from tests.models.detectors.built_detectors import build_detector, write_detection_run
from tests.models.segmenters.noise_segmenters import make_noise_segmenter, write_segmentation_run


def run_predict(*words: str | Path, exit_code: int = 0) -> str:
    """Return the output of the command."""
    words = ("predict", *words, "--workers", "1")
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.stdout


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "my images"
    root.mkdir()
    for index in range(2):
        noise = np.random.default_rng(index).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{index}.png")
    return root


@pytest.mark.unchecked  # starts worker processes
def test_the_output_names_what_was_written_and_what_to_do_next(images: Path, tmp_path: Path) -> None:
    run = write_segmentation_run(tmp_path / "run", make_noise_segmenter("linear"))
    out = tmp_path / "out"
    text = run_predict(run, images, "--out", out)
    assert "protocol: windows of 32×32 every 21×21 pixels" in text
    assert "predicted 2 images\n" in text
    assert f"wrote {out}/semantic: an id map for each image; {out}/dataset.json names the classes" in text
    assert "next: the same command with --as-scenes" in text
    (images / "2.jpg").write_bytes(b"no image")
    text = run_predict(run, images, "--out", out, "--as-scenes", "--save", "overlay", exit_code=1)
    assert "predicted 2 images\n" in text
    assert f"1 problem, listed in {out}/unreadable.txt:\n  {images}/2.jpg: cannot be decoded" in text
    assert "maps_know_labels: false" in text
    assert f"next: c2fmae data preview {out}" in text
    text = run_predict(run, images, "--out", out, exit_code=1)
    assert "predicted 2 images, 2 of them before" in text


@pytest.mark.unchecked  # starts worker processes
def test_the_output_names_the_files_of_a_detector(images: Path, tmp_path: Path) -> None:
    run = write_detection_run(tmp_path / "run", build_detector(), testing={"short_side": 48, "max_side": 64})
    out = tmp_path / "out"
    text = run_predict(run, images, "--out", out, "--threshold", "0.3")
    assert "protocol: shorter sides of images resized to 48, longer ones at most 64; at most 100 detections" in text
    assert "with scores above 0.3" in text
    assert f"wrote {out}/predictions.json: objects as COCO results; {out}/images.json has the ids" in text
    assert "next: the same command with --save overlay" in text
    words = ("--threshold", "0.3", "--as-scenes", "--save", "overlay,yolo")
    text = run_predict(run, images, "--out", out, *words)
    assert f"wrote {out}/labels: objects in YOLO's format; {out}/data.yaml names the classes" in text
    assert f"wrote {out}/overlay: the images with their objects" in text
    assert f"wrote {out}/semantic, {out}/instance: id maps; {out}/rgb: links to the images" in text
    assert "set it to true if the detector was trained on these images" in text
    assert f"next: c2fmae data preview {out}" in text


def test_a_classifier_suggests_a_test_on_the_same_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[Any]()
    write = predict_module.predict

    def record(*args: Any, **options: Any) -> Any:
        calls.append((args[4], options["batching"].batch_size, options["step"], options["use_ema"]))
        return write(*args, **options)

    monkeypatch.setattr(predict_module, "predict", record)
    run = write_finetuned_run(tmp_path / "run", make_noise_classifier())
    words = ("--top-k", "2", "--batch-size", "1", "--step", "20", "--ema")
    text = run_predict(run, images, "--out", tmp_path / "out", *words)
    assert calls == [(predict_module.PredictOptions(top_k=2), 1, 20, True)]
    assert f"wrote {tmp_path}/out/predictions.csv" in text
    assert f"next: c2fmae eval robustness {run} --custom NAME='{images}'" in text


@pytest.mark.unchecked  # starts worker processes
@pytest.mark.parametrize(
    ("page", "section", "num_commands"),
    [("segmentation", "Predict", 5), ("segmentation", "Export", 2), ("detection", "Predict", 5)],
)
def test_the_commands_of_the_page_run(
    page: str, section: str, num_commands: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[2] / "docs" / f"{page}.md"
    text = path.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^ *c2fmae ((?:predict|export (?:mae|mmseg)) .*)$", text, re.MULTILINE)
    assert len(commands) == num_commands
    write_segmentation_run(tmp_path / "runs" / "segment", make_noise_segmenter("linear"))
    write_detection_run(tmp_path / "runs" / "detect", build_detector(), testing={"short_side": 48, "max_side": 64})
    write_finetuned_run(tmp_path / "runs" / "classifier", make_noise_classifier())
    images.rename(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command, comments=True), catch_exceptions=False)
        assert result.exit_code == 0, result.output


def test_the_number_of_workers_follows_from_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = list[int]()

    def predict(*_: object, batching: BatchingConfig, **__: object) -> None:
        used.append(batching.num_workers)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_module, "predict", predict)
    monkeypatch.setattr(cores, "count_cores", lambda: 5)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for words in ((), ("--workers", "3")):
        CliRunner().invoke(app, ["predict", "run", "images", "--out", str(tmp_path / "out"), *words])
    assert used == [5, 3]
