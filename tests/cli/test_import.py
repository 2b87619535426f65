"""`c2fmae import …`: output, and the run that it creates."""

from pathlib import Path

import torch
from c2fmae_cli.import_ import import_
from typer.testing import CliRunner

from c2fmae.core.errors import UserError
from c2fmae.recipes.config import RecipeConfig
from tests.models.backbones.official_mae import mae_weights, multimae_weights


def test_an_mae_checkpoint_becomes_a_run(tmp_path: Path) -> None:
    torch.save({"model": mae_weights()}, tmp_path / "mae.pth")
    out = tmp_path / "a b"
    words = ["mae", str(tmp_path / "mae.pth"), str(out), "--channels", "4", "--num-heads", "4"]
    done = CliRunner().invoke(import_, [*words, "--set", "method.targets.rgb=[pixels]", "--set", "training.epochs=5"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == [
        f"wrote {out}: config.yaml and a checkpoint of step 0",
        f"next: c2fmae pretrain '{out}/config.yaml' --data DATA --out RUN",
    ]
    assert "images have 4 channels instead of 3: " in done.stdout
    recipe = RecipeConfig.from_yaml(out / "config.yaml")
    assert (recipe.name, recipe.title) == ("a b", "Continued pre-training of mae.pth.")
    assert recipe.method.channels == {"rgb": 4}
    assert recipe.method.encoder.num_heads == 4
    assert [target.name for target in recipe.masked_method.targets["rgb"]] == ["pixels"]
    assert recipe.training.epochs == 5
    assert recipe.training.base_lr == 1.5e-4
    assert recipe.deviations == ("changed: method.targets.rgb=[pixels]", "changed: training.epochs=5")


def test_a_multimae_checkpoint_becomes_a_run(tmp_path: Path) -> None:
    torch.save({"model": multimae_weights()}, tmp_path / "multimae.pth")
    done = CliRunner().invoke(import_, ["multimae", str(tmp_path / "multimae.pth"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    recipe = RecipeConfig.from_yaml(tmp_path / "out" / "config.yaml")
    assert recipe.method.granularities == ("semantic", "depth", "rgb")
    assert recipe.masked_method.decoder.name == "parallel"


def test_a_missing_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(import_, ["mae", str(tmp_path / "none.pth"), str(tmp_path / "out")])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == f"{tmp_path / 'none.pth'}: cannot be read: No such file or directory. Check the path"
    assert not (tmp_path / "out").exists()
