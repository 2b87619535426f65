"""The options of `c2fmae pretrain`, in the process of the tests."""

import logging
from pathlib import Path

import pytest
import yaml
from c2fmae_cli import app
from typer.testing import CliRunner, Result

from c2fmae.core.errors import UserError
from c2fmae.recipes.config import load_recipe


def run_pretrain(*args: str) -> Result:
    """Return the result of `c2fmae pretrain`; errors are raised."""
    result: Result = CliRunner().invoke(app, ["pretrain", *args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_options_set_the_length_the_batch_and_the_learning_rate(tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = ("c2fmae-debug", "--out", str(out), "--steps", "1", "--batch-size", "2", "--lr", "0.01")
    result = run_pretrain(*args, "--set", "watching.figures=0", "--set", "data.held_out=null")
    assert result.exit_code == 0, result.output
    assert f"finished at step 1: {out}" in result.output
    training = yaml.safe_load((out / "config.yaml").read_text())["training"]
    assert {key: training[key] for key in ("steps", "epochs", "warmup_steps", "batch_size", "lr", "base_lr")} == {
        **{"steps": 1, "epochs": None, "warmup_steps": 0, "batch_size": 2, "lr": 0.01, "base_lr": None}
    }


def test_a_setting_of_the_length_replaces_the_other_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "c2fmae")
    training = load_recipe("c2fmae-b", ["training.steps=1000"]).training
    assert (training.steps, training.epochs, training.warmup_steps, training.warmup_epochs) == (1000, None, 100, None)
    assert caplog.messages == [
        "note: training.steps=1000 also sets training.epochs=null, training.warmup_epochs=null, "
        "training.warmup_steps=100"
    ]
    caplog.clear()
    training = load_recipe("c2fmae-tiny", ["training.epochs=2", "training.warmup_epochs=0.5"]).training
    assert (training.steps, training.epochs, training.warmup_steps, training.warmup_epochs) == (None, 2, None, 0.5)
    assert load_recipe("c2fmae-b", ["training.batch_size=64"]).training.epochs == 400
    assert len(caplog.messages) == 1


def test_two_lengths_are_rejected() -> None:
    with pytest.raises(UserError, match=r"^--steps, --epochs: both give the length. Use one of them$"):
        run_pretrain("c2fmae-debug", "--steps", "1", "--epochs", "1")
    with pytest.raises(UserError, match=r"training: expected either epochs or steps. Set the other to null$"):
        run_pretrain("c2fmae-debug", "--steps", "1", "--set", "training.epochs=1")
