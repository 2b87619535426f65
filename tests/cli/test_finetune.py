"""`c2fmae eval finetune`, word by word."""

import logging
from pathlib import Path

import pytest
from c2fmae_cli.doctor import doctor
from c2fmae_cli.eval import eval_
from c2fmae_cli.eval_run import update_run_reports
from typer.testing import CliRunner, Result

from c2fmae.core.errors import UserError
from c2fmae.loading import load_run
from c2fmae.recipes.config import load_recipe
from tests.eval.classification.tiny_finetuning import (
    QUICK_OVERRIDES,
    write_pretrained_checkpoint,
    write_train_test_sets,
)

SET = [word for setting in QUICK_OVERRIDES for word in ("--set", setting)]


def said(*words: str) -> str:
    result: Result = CliRunner().invoke(eval_, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_train_test_sets(tmp_path_factory.mktemp("data"))
    (root / "test").rename(root / "val")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained_checkpoint(tmp_path_factory.mktemp("source"))


def test_a_source_and_the_same_from_scratch_side_by_side(
    source: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("finetune", str(source), "--untrained", "--data", str(data), "--out", str(tmp_path / "runs"), *SET)
    caplog.set_level(logging.INFO, "c2fmae")
    lines = said(*words).splitlines()
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
        said(*words)
    assert said(*words, "--resume").splitlines() == lines
    assert f"wrote {own}: report.html" in said("finetune", str(own), "--resume")


def test_a_dry_run_writes_nothing(source: Path, data: Path, tmp_path: Path) -> None:
    words = ("--data", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--recipe", "b-400")
    lines = said("finetune", str(source), *words, *SET).splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'run'}:",
        "6 steps (2 epochs of 3), 1 of warm-up; batch 8 = 1 process × 8; learning rate up to 0.001",
    ]
    assert lines[-1] == "next: the same command without --dry-run"
    assert not (tmp_path / "run").exists()


def test_a_fine_tuned_run_among_the_other_commands(
    source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    said("finetune", str(source), "--data", str(data / "train"), "--test", str(data / "val"), "--out", str(run), *SET)
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
            lambda: said("finetune", str(run)),
            "is a fine-tuned run. Continue it with --resume, or name data with --data",
        ),
        (
            lambda: said("finetune", str(run), "--resume", "--recipe", "small"),
            "continues with its own config, without --recipe. Change settings with --set",
        ),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{run}: {message}"


def test_sources_that_would_share_a_folder_are_refused(data: Path, tmp_path: Path) -> None:
    sources = [str(write_pretrained_checkpoint(tmp_path / name)) for name in ("a", "b")]
    with pytest.raises(UserError) as caught:
        said("finetune", *sources, "--data", str(data), "--out", str(tmp_path / "runs"), *SET)
    folder = tmp_path / "runs" / "step-00000001"
    assert str(caught.value) == (
        f"{sources[1]}: its run directory would be {folder}, as that of another source. Fine-tune them one by one"
    )
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "b400"], "no fine-tuning recipe named 'b400'. Did you mean 'b-400'? Known: "),
        (["--set", "mixing.mixap=1"], "eval finetune: mixing.mixap: no such setting. Did you mean 'mixup'?"),
        (["--granularities", "rgb,depth"], "data.granularities: no granularity of {source} named 'depth'. Known: rgb"),
    ],
)
def test_misspelt_words_are_answered_with_the_nearest(
    source: Path, data: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        said("finetune", str(source), "--data", str(data), "--out", str(tmp_path / "run"), *words)
    assert str(caught.value).startswith(message.format(source=source))
