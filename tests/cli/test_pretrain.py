"""The options of `c2fmae pretrain`, in the process of the tests."""

import logging
from pathlib import Path

import pytest
import yaml
from c2fmae_cli import app
from PIL import Image
from typer.testing import CliRunner, Result

from c2fmae.core.errors import UserError
from c2fmae.recipes.config import data_overrides, load_recipe
from tests.cli.commands import run_eval


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
    assert load_recipe("mae-s", ["training.epochs=1e1"]).training.warmup_epochs == 1  # YAML reads 1e1 as text
    caplog.clear()
    assert load_recipe("c2fmae-b", ["training.batch_size=64"]).training.epochs == 400
    assert not caplog.messages


def test_a_length_beyond_every_number_is_rejected() -> None:
    with pytest.raises(UserError, match=r"training\.steps: "):
        load_recipe("c2fmae-b", [f"training.steps=1{'0' * 400}"])


def test_two_lengths_are_rejected() -> None:
    with pytest.raises(UserError, match=r"^--steps, --epochs: both give the length. Use one of them$"):
        run_pretrain("c2fmae-debug", "--steps", "1", "--epochs", "1")
    with pytest.raises(UserError, match=r"training: expected either epochs or steps. Set the other to null$"):
        run_pretrain("c2fmae-debug", "--steps", "1", "--set", "training.epochs=1")


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (40, 40), (20 * index, 0, 0)).save(folder / f"{folder.name}-{index}.png")
    return folder


TINY = ("mae-tiny", "--steps", "1", "--batch-size", "2", "--set", "watching.figures=0", "--set", "data.workers=0")


def test_of_a_folder_with_train_and_val_val_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "c2fmae")
    root, out = tmp_path / "images", tmp_path / "run"
    write_images(root / "train", 4)
    write_images(root / "val", 3)
    data_overrides(load_recipe("mae-tiny"), [str(root)])
    assert caplog.messages == [f'note: data.train=["{root}/train"], data.held_out=["{root}/val"]']
    write_images(root / "training", 2)
    assert f'data.held_out=["{root}/val"]' in data_overrides(load_recipe("mae-tiny"), [str(root)])
    result = run_pretrain(*TINY, "--data", str(root), "--out", str(out))
    assert result.exit_code == 0, result.output
    data = yaml.safe_load((out / "config.yaml").read_text())["data"]
    assert (data["train"], data["held_out"]) == ([f"{root}/train"], [f"{root}/val"])
    assert "held_out/loss" in (out / "metrics.jsonl").read_text()


def test_a_fraction_of_the_training_data_is_held_out(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 10), tmp_path / "run"
    result = run_pretrain(*TINY, "--data", str(images), "--held-out", "3e-1", "--out", str(out))
    assert result.exit_code == 0, result.output
    config = load_recipe(str(out))
    assert config.data.held_out == 0.3
    train, held_out = config.data.open_training(("rgb",)), config.data.open_held_out(("rgb",))
    assert held_out is not None
    assert (len(train), len(held_out)) == (7, 3)
    assert not {*train.keys} & {*held_out.keys}
    with pytest.raises(UserError, match=r"data\.held_out: expected a source, or a fraction between 0 and 1, got 1\.5$"):
        run_pretrain(*TINY, "--held-out", "1.5")


def test_patterns_that_the_shell_expanded_are_explained(tmp_path: Path) -> None:
    shards = [str(tmp_path / f"train-{index}.tar") for index in range(2)]
    for shard in shards:
        Path(shard).touch()
    with pytest.raises(UserError) as caught:
        run_pretrain("mae-tiny", "--data", *shards, "--steps", "1")
    assert str(caught.value) == (
        f"--data: got 2 paths, as a shell expands patterns. Quote the pattern, as in --data '{tmp_path}/train-*.tar'"
    )
    with pytest.raises(UserError, match="Quote the pattern"):
        run_eval("knn", "runs/b", "--data", *shards)


def test_settings_that_are_options_are_named() -> None:
    with pytest.raises(UserError) as caught:
        run_pretrain("mae-tiny", "--set", "batch_size=3", "--set", "stesp=3")
    assert str(caught.value).splitlines()[1:] == [
        "  batch_size: no such setting. It is the option --batch-size. Did you mean 'training.batch_size'?",
        "  stesp: no such setting. Known: "
        "format, kind, name, title, source, reported, deviations, unmeasured, method, data, init, training, saving, "
        "watching, backbone",
    ]
    with pytest.raises(
        UserError, match=r"^eval attention: limit: no such setting\. It is the option --limit\. Known: "
    ):
        run_eval("attention", "runs/b", "--set", "limit=5")
