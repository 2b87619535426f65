"""The command `c2fmae eval finetune`."""

import logging
from pathlib import Path

import pytest
from c2fmae_cli.doctor import doctor
from c2fmae_cli.eval_run import update_run_reports

from c2fmae.core.errors import UserError
from c2fmae.loading import load_run
from c2fmae.recipes.config import load_recipe
from tests.cli.commands import run_eval
from tests.eval.classification.tiny_finetuning import (
    QUICK_OVERRIDES,
    write_pretrained_checkpoint,
    write_train_test_sets,
)

pytestmark = pytest.mark.unchecked

SET = [argument for setting in QUICK_OVERRIDES for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_train_test_sets(tmp_path_factory.mktemp("data"))
    (root / "test").rename(root / "val")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained_checkpoint(tmp_path_factory.mktemp("source"))


def test_source_and_training_from_scratch_are_compared(
    source: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = ("finetune", str(source), "--untrained", "--data", str(data), "--out", str(tmp_path / "runs"), *SET)
    caplog.set_level(logging.INFO, "c2fmae")
    lines = run_eval(*args).splitlines()
    assert f"{source}: recipe small, from none: " in caplog.text
    own, scratch = tmp_path / "runs" / "step-00000001", tmp_path / "runs" / "step-00000001-scratch"
    assert lines[0].split() == ["unit", "count", str(source), f"{source},", "from", "scratch"]
    assert [line.split()[0] for line in lines[1:3]] == ["top-1", "loss"]
    protocols = [line for line in lines if line.startswith("protocol of ")]
    assert f"from {source}; batch 8, AdamW" in protocols[0]
    assert "from scratch; batch 8, AdamW" in protocols[1]
    assert "layer decay 0.75" in protocols[0]
    assert lines[-1] == f"next: c2fmae eval robustness {own} {scratch} --custom NAME=DIR"
    with pytest.raises(UserError, match=r"--resume"):
        run_eval(*args)
    results = [run / "evaluations" / "finetune" / "results.json" for run in (own, scratch)]
    assert {f"wrote {path}" for path in results} <= set(lines)
    resumed = run_eval(*args, "--resume").splitlines()
    assert [line.replace(" exists", "").removeprefix("wrote ") for line in resumed] == [
        line.removeprefix("wrote ") for line in lines
    ]
    assert {f"{path} exists" for path in results} <= set(resumed)
    assert f"wrote {own}: report.html" in run_eval("finetune", str(own), "--resume")


def test_dry_runs_write_nothing(source: Path, data: Path, tmp_path: Path) -> None:
    args = ("--data", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--recipe", "b-400")
    lines = run_eval("finetune", str(source), *args, *SET).splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'run'}:",
        "6 steps (2 epochs of 3), 1 of warm-up; batch 8 = 1 process × 8; learning rate up to 0.001",
    ]
    assert lines[-1] == "next: the same command without --dry-run"
    assert not (tmp_path / "run").exists()


def test_a_short_run_needs_no_settings_but_its_length_batch_and_learning_rate(
    source: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = ("finetune", str(source), "--data", str(data), "--out", str(tmp_path / "run"), "--dry-run")
    caplog.set_level(logging.INFO, "c2fmae")
    settings = ("--set", "data.workers=0", "--set", "data.crop=1")
    lines = run_eval(*args, *settings, "--steps", "6", "--batch-size", "8", "--lr", "1e-3").splitlines()
    assert lines[1] == "6 steps (2 epochs of 3), 1 of warm-up; batch 8 = 1 process × 8; learning rate up to 0.001"
    assert (
        "note: training.steps=6, training.lr=0.001 also sets training.epochs=null, training.warmup_epochs=null, "
        "training.warmup_steps=1" in caplog.messages
    )
    lines = run_eval(*args, *settings, "--epochs", "3", "--batch-size", "8").splitlines()
    assert lines[1] == "9 steps (3 epochs of 3), 1 of warm-up; batch 8 = 1 process × 8; learning rate up to 0.001"
    lines = run_eval(*args, *settings, "--epochs", "2", "--batch-size", "8", "--limit", "17").splitlines()
    assert lines[1].startswith("4 steps (2 epochs of 2), ")
    with pytest.raises(UserError, match=r"^--steps, --epochs: both give the length. Use one of them$"):
        run_eval(*args, "--steps", "6", "--epochs", "1")


def test_other_commands_accept_or_reject_fine_tuned_runs(
    source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_eval(
        "finetune", str(source), "--data", str(data / "train"), "--test", str(data / "val"), "--out", str(run), *SET
    )
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    update_run_reports([str(run)])
    assert (run / "report.html").read_text() == page
    assert "A fine-tuned classifier" in page
    doctor(run)
    assert capsys.readouterr().out.splitlines()[-1] == f"next: c2fmae eval robustness {run} --custom NAME=DIR"
    for read, message in (
        (lambda: load_run(run), "is a fine-tuned classifier without a decoder. Use the run it was fine-tuned from"),
        (
            lambda: load_recipe(str(run)),
            f"is a fine-tuned run. Resume it with: c2fmae eval finetune {run} --resume",
        ),
        (
            lambda: run_eval("finetune", str(run)),
            "is a fine-tuned run. Resume it with --resume, or fine-tune from it with --data",
        ),
        (
            lambda: run_eval("finetune", str(run), "--resume", "--recipe", "small"),
            "a resumed run has its own config, so --recipe has no effect. Use --set to change settings",
        ),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{run}: {message}"


def test_sources_with_the_same_run_directory_are_rejected(data: Path, tmp_path: Path) -> None:
    sources = [str(write_pretrained_checkpoint(tmp_path / name)) for name in ("a", "b")]
    with pytest.raises(UserError) as caught:
        run_eval("finetune", *sources, "--data", str(data), "--out", str(tmp_path / "runs"), *SET)
    folder = tmp_path / "runs" / "step-00000001"
    assert str(caught.value) == (
        f"{sources[1]}: its run directory {folder} is also that of another source. Fine-tune them one by one"
    )
    assert not folder.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "b400"], "no fine-tuning recipe named 'b400'. Did you mean 'b-400'? Known: "),
        (["--set", "mixing.mixap=1"], "eval finetune: mixing.mixap: no such setting. Did you mean 'mixup'?"),
        (["--granularities", "rgb,depth"], "data.granularities: no granularity of {source} named 'depth'. Known: rgb"),
    ],
)
def test_errors_about_misspelt_options_suggest_the_nearest(
    source: Path, data: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run_eval("finetune", str(source), "--data", str(data), "--out", str(tmp_path / "run"), *args)
    assert str(caught.value).startswith(message.format(source=source))
