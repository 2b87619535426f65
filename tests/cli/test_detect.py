"""The command `c2fmae eval detect`."""

import logging
from pathlib import Path

import pytest
from c2fmae_cli.doctor import doctor

from c2fmae.core.errors import UserError
from c2fmae.loading import load_run
from c2fmae.recipes.config import load_recipe
from tests.cli.commands import run_eval
from tests.eval.detection.tiny_detection import QUICK_OVERRIDES, write_coco, write_rectangles, write_source

pytestmark = pytest.mark.unchecked

SET = [argument for setting in QUICK_OVERRIDES for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def run(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run_eval("detect", str(source), "--data", str(data), "--out", str(path), *SET)
    return path


def test_generated_scenes_and_training_from_scratch_have_one_table(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c2fmae.eval.detection.result.draw_examples", lambda *args, **kwargs: None)  # slow
    lengths = ("--set", "data.train.options={length: 4, size: 32}", "--set", "data.test.options={length: 2, size: 32}")
    args = ("detect", str(source), "--untrained", "--data", "generated", "--out", str(tmp_path / "runs"), *SET)
    caplog.set_level(logging.INFO, "c2fmae")
    lines = run_eval(*args, *lengths, "--steps", "1").splitlines()
    assert f"{source}: recipe lite, from none: " in caplog.text
    own, scratch = tmp_path / "runs" / "step-00000001", tmp_path / "runs" / "step-00000001-scratch"
    assert lines[0].split() == ["unit", "count", str(source), f"{source},", "from", "scratch"]
    protocols = [line for line in lines if line.startswith("protocol of ")]
    assert f"from {source}; batch 4, AdamW" in protocols[0]
    assert "from scratch; batch 4, AdamW" in protocols[1]
    results = {f"wrote {path / 'evaluations' / 'detect' / 'results.json'}" for path in (own, scratch)}
    assert results <= set(lines)
    assert lines[-1] == f"next: c2fmae predict {own} IMAGES --out DIR"


def test_a_finished_run_is_tested_by_another_protocol(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (run / "checkpoints/step-00000004/tensors.safetensors").read_bytes()
    lines = run_eval("detect", str(run), "--set", "testing.max_detections=10").splitlines()
    first, second = run / "evaluations/detect/results.json", next(run.glob("evaluations/detect-*/results.json"))
    assert f"wrote {second}" in lines
    assert first.exists()
    assert f"wrote {run / 'report.html'}: the run's page, with these results" in lines
    assert f"{second} exists" in run_eval("detect", str(run), "--set", "testing.max_detections=10")
    assert (run / "checkpoints/step-00000004/tensors.safetensors").read_bytes() == weights
    doctor(run)
    assert capsys.readouterr().out.splitlines()[-1] == f"next: c2fmae predict {run} IMAGES --out DIR"


def test_a_folder_of_coco_and_its_files_are_the_same_data(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c2fmae.eval.detection.result.draw_examples", lambda *args, **kwargs: None)  # slow
    coco = write_coco(tmp_path / "coco")
    train, test = (coco / "annotations" / f"instances_{split}2017.json" for split in ("train", "val"))
    quick = ("--limit", "4", "--steps", "1", *SET)
    by_file = ("--data", str(train), "--test", str(test), "--out", str(tmp_path / "run"))
    lines = run_eval("detect", str(source), *by_file, *quick).splitlines()
    (protocol,) = (line for line in lines if line.startswith("protocol"))
    assert f"{train}, 3 images without objects left out, 4 evenly spaced of 5 (4)" in protocol
    assert f"Tested on {test} (4)" in protocol
    again = run_eval("detect", str(source), "--data", str(coco), "--out", str(tmp_path / "run"), "--resume", *quick)
    assert f"{tmp_path / 'run/evaluations/detect/results.json'} exists" in again


def test_dry_runs_write_nothing(source: Path, data: Path, tmp_path: Path) -> None:
    args = ("--data", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--recipe", "vitdet", "--limit", "4")
    lines = run_eval("detect", str(source), *args, *SET, "--set", "windows.size=2").splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'run'}:",
        "4 steps (4 epochs of 1), 1 of warm-up; batch 4 = 1 process × 4; learning rate up to 0.001",
    ]
    assert lines[-1] == "next: the same command without --dry-run"
    assert not (tmp_path / "run").exists()


def test_other_commands_accept_or_reject_runs_of_detectors(run: Path) -> None:
    for read, message in (
        (lambda: load_run(run), "is a detector without a decoder. Use the run it was fine-tuned from"),
        (lambda: load_recipe(str(run)), f"is a fine-tuned run. Resume it with: c2fmae eval detect {run} --resume"),
        (
            lambda: run_eval("detect", str(run), "--steps", "5"),
            "is a run of a detector. Test it again with --set testing.…, resume it with --resume, or fine-tune from "
            "it with --data",
        ),
        (
            lambda: run_eval("detect", str(run), "--set", "testing.canvas=40", "--recipe", "lite"),
            "a resumed run has its own config, so --recipe has no effect. Use --set to change settings",
        ),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{run}: {message}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "papr"], "no detection recipe named 'papr'. Did you mean 'paper'? Known: "),
        (["--set", "testing.canvass=9"], "eval detect: testing.canvass: no such setting. Did you mean 'canvas'?"),
    ],
)
def test_errors_about_misspelt_options_suggest_the_nearest(
    source: Path, data: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run_eval("detect", str(source), "--data", str(data), "--out", str(tmp_path / "run"), *args)
    assert str(caught.value).startswith(message)


def test_the_help_describes_tests_without_training() -> None:
    text = " ".join(run_eval("detect", "--help").replace("│", " ").split())
    assert "With a finished run instead of a ViT, test the run again" in text
    assert "paper, vitdet, lite or small" in text
