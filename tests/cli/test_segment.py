"""The command `c2fmae eval segment`."""

import logging
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from c2fmae_cli.doctor import doctor
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.eval.results import load_result
from c2fmae.eval.segmentation.prediction import predict_ids
from c2fmae.loading import load_run
from c2fmae.recipes.config import load_recipe
from tests.cli.commands import run_eval
from tests.cli.parsing import split_commands
from tests.eval.segmentation.tiny_segmentation import QUICK_OVERRIDES, write_halves, write_source

pytestmark = pytest.mark.unchecked

SET = [argument for setting in QUICK_OVERRIDES for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_halves(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def run(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run_eval("segment", str(source), "--data", str(data), "--out", str(path), *SET, "--set", "training.ema=0.5")
    return path


def test_source_and_training_from_scratch_are_compared(
    source: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = ("segment", str(source), "--untrained", "--data", str(data), "--out", str(tmp_path / "runs"), *SET)
    caplog.set_level(logging.INFO, "c2fmae")
    lines = run_eval(*args, "--set", "training.steps=1", "--set", "training.warmup_steps=0").splitlines()
    assert f"{source}: recipe small, from none: " in caplog.text
    own, scratch = tmp_path / "runs" / "step-00000001", tmp_path / "runs" / "step-00000001-scratch"
    assert lines[0].split() == ["unit", "count", str(source), f"{source},", "from", "scratch"]
    assert lines[1].split()[0] == "mIoU"
    protocols = [line for line in lines if line.startswith("protocol of ")]
    assert f"from {source}; batch 8, AdamW" in protocols[0]
    assert "from scratch; batch 8, AdamW" in protocols[1]
    results = {f"wrote {path / 'evaluations' / 'segment' / 'results.json'}" for path in (own, scratch)}
    assert results <= set(lines)
    assert lines[-1].startswith(f"next: c2fmae predict {own} ")


def test_a_finished_run_is_tested_by_another_protocol(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (run / "checkpoints/step-00000004/tensors.safetensors").read_bytes()
    lines = run_eval("segment", str(run), "--set", "testing.flip=true").splitlines()
    first, second = run / "evaluations/segment/results.json", next(run.glob("evaluations/segment-*/results.json"))
    assert f"wrote {second}" in lines
    assert first.exists()
    assert f"wrote {run / 'report.html'}: the run's page, with these results" in lines
    assert f"{second} exists" in run_eval("segment", str(run), "--set", "testing.flip=true")
    assert (run / "checkpoints/step-00000004/tensors.safetensors").read_bytes() == weights
    assert len(list(run.glob("evaluations/*/results.json"))) == 2
    doctor(run)
    assert capsys.readouterr().out.splitlines()[-1] == f"next: c2fmae predict {run} IMAGES --out DIR"


def test_a_test_that_a_signal_stops_continues(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted: list[int] = []

    def predict_and_signal(*args: Any, **kwargs: Any) -> Tensor:
        predicted.append(1)
        if len(predicted) == 4:
            signal.raise_signal(signal.SIGTERM)
        return predict_ids(*args, **kwargs)

    monkeypatch.setattr("c2fmae.eval.segmentation.evaluator.predict_ids", predict_and_signal)
    args = ("segment", str(run), "--set", "testing.short_side=24")
    lines = run_eval(*args, exit_code=75).splitlines()
    assert lines == [f"saved-on-signal: {run}, the predictions so far", "next: the same command"]
    assert "mIoU" in run_eval(*args)
    assert len(predicted) == 6


@pytest.mark.unchecked  # a dozen short runs, of which nothing new has shapes
def test_the_commands_of_the_page_run(
    source: Path, data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/segmentation.md").read_text(encoding="utf-8")
    text = page.partition("## Training\n")[2].partition("## Report\n")[0].replace("\\\n", " ")
    lines = re.findall(r"^    (.* eval segment .*)$", text, re.MULTILINE)
    commands = [words for line in lines for words in split_commands(line)]
    assert len(commands) == 12
    for name in ("b", "mae", "tiny", "voc"):
        shutil.copytree(source, tmp_path / "runs" / name)
    shutil.copytree(run, tmp_path / "RUN")
    shutil.copytree(data, tmp_path / "ade20k")
    shutil.copytree(data, tmp_path / "packs/voc")
    shutil.copytree(data, tmp_path / "street")
    (tmp_path / "street/test").rename(tmp_path / "street/val")
    monkeypatch.chdir(tmp_path)
    quick = [*QUICK_OVERRIDES, "training.batch_size=2", "training.steps=1", "training.warmup_steps=0"]
    for number, words in enumerate(commands):
        settings = quick if "--data" in words else []
        if "linear" in words:
            settings = [setting for setting in settings if not setting.startswith("head")]
        if "generated" in words:
            settings = [
                *settings,
                "data.train.options={length: 4, size: 32}",
                "data.test.options={length: 2, size: 32}",
            ]
        out = [] if "--out" in words or "--data" not in words else ["--out", f"out/{number}"]
        assert "mIoU" in run_eval(*words[2:], *out, *(word for setting in settings for word in ("--set", setting)))
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    names: dict[str, Any] = {}
    exec(example, names)
    mean_iou = load_result(Path("RUN/evaluations/segment")).metrics[0].value
    assert 100 * names["scores"].mean_iou == pytest.approx(mean_iou, abs=1e-9)


def test_dry_runs_write_nothing(source: Path, data: Path, tmp_path: Path) -> None:
    args = ("--data", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--recipe", "paper")
    lines = run_eval("segment", str(source), *args, *SET).splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'run'}:",
        "4 steps (2 epochs of 2), 1 of warm-up; batch 8 = 1 process × 8; learning rate up to 0.001",
    ]
    assert lines[-1] == "next: the same command without --dry-run"
    assert not (tmp_path / "run").exists()


def test_a_test_has_no_dry_run(run: Path) -> None:
    with pytest.raises(UserError, match=r"--dry-run: estimates a training, but this command only tests a run"):
        run_eval("segment", str(run), "--set", "testing.mode=whole", "--dry-run")


def test_the_help_describes_tests_without_training() -> None:
    text = " ".join(run_eval("segment", "--help").replace("│", " ").split())
    assert "With a finished run instead of a ViT, test the run again" in text
    assert "exits with 75" in text


def test_other_commands_accept_or_reject_runs_of_segmenters(run: Path, data: Path) -> None:
    for read, message in (
        (lambda: load_run(run), "is a segmenter without a decoder. Use the run it was fine-tuned from"),
        (
            lambda: load_recipe(str(run)),
            f"is a fine-tuned run. Resume it with: c2fmae eval segment {run} --resume",
        ),
        (
            lambda: run_eval("segment", str(run), "--steps", "5"),
            "is a run of a segmenter. Test it again with --set testing.…, resume it with --resume, or fine-tune from "
            "it with --data",
        ),
        (
            lambda: run_eval("segment", str(run), "--set", "testing.flip=true", "--recipe", "small"),
            "a resumed run has its own config, so --recipe has no effect. Use --set to change settings",
        ),
        (
            lambda: run_eval("segment", str(run), "--set", "testing.flip=true", "--resume", "--accept-changes"),
            "is finished. Test it by another protocol without --resume",
        ),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{run}: {message}"
    assert "mIoU" in run_eval("segment", str(run), "--resume")
    stored = run / "evaluations/segment/results.json"
    assert f"{stored} exists" in run_eval("segment", str(run), "--set", "data.workers=0")


def test_generated_scenes_have_maps_of_their_own(source: Path, tmp_path: Path) -> None:
    lengths = ("--set", "data.train.options={length: 8, size: 32}", "--set", "data.test.options={length: 2, size: 32}")
    args = ("--data", "generated", "--out", str(tmp_path / "run"), *SET, *lengths)
    lines = run_eval("segment", str(source), *args, "--set", "training.steps=1", "--set", "training.warmup_steps=0")
    assert re.search(r"Tested on generated, [^(]*seed 1002 \(2\): whole images", lines)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "papr"], "no segmentation recipe named 'papr'. Did you mean 'paper'? Known: "),
        (["--set", "testing.mod=whole"], "eval segment: testing.mod: no such setting. Did you mean 'mode'?"),
        (["--set", "head=upernett"], "eval segment: head.name: no segmentation head named 'upernett'. Did you mean"),
    ],
)
def test_errors_about_misspelt_options_suggest_the_nearest(
    source: Path, data: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run_eval("segment", str(source), "--data", str(data), "--out", str(tmp_path / "run"), *args)
    assert str(caught.value).startswith(message)
