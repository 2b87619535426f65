"""Replay of a step of a run."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.pretrain import build_pretraining, pretrain
from c2fmae.recipes.config import RecipeConfig, load_recipe
from c2fmae.replay import compute_sample_losses, replay_step

pytestmark = pytest.mark.numeric

CONFIG = load_recipe(
    "c2fmae-debug",
    [
        "training.steps=3",
        "training.warmup_steps=1",
        "training.precision=fp32",
        "data.train.options={size: 64, length: 16, difficulty: easy}",
        "data.held_out=null",
        "watching.figures=0",
        "saving.steps=1",
    ],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay") / "run"
    pretrain(CONFIG, out)
    return out


def test_a_replayed_step_has_the_same_losses(run: Path) -> None:
    row = next(row for row in read_rows(RunDir(run).metrics) if row["step"] == 3)
    lines = replay_step(load_recipe(str(run)), run, 3).splitlines()
    assert lines[0] == "step 3: 8 samples, with the weights after step 2"
    expected = ", ".join(f"{name} {row[f'loss/{name}']:.4g}" for name in ("semantic", "instance", "rgb"))
    assert lines[1] == f"losses: {expected}"
    assert len(lines) == 2 + 5 + 1
    assert lines[-1].startswith("all losses are finite here")


def test_earlier_weights_are_reported(run: Path) -> None:
    assert (
        replay_step(load_recipe(str(run)), run, 1).splitlines()[0] == "step 1: 8 samples, with the weights after step 0"
    )
    (run / "checkpoints/step-00000002").rename(run / "set-aside")
    try:
        assert (
            replay_step(load_recipe(str(run)), run, 3).splitlines()[1]
            == "  (not those of the step itself, which were not saved)"
        )
    finally:
        (run / "set-aside").rename(run / "checkpoints/step-00000002")


def test_the_first_module_with_an_output_that_is_not_finite_is_found() -> None:
    experiment = build_pretraining(CONFIG, World())
    with experiment.open_batches(0) as batches:
        (part,) = experiment.task.split(
            next(batches), num_micro_batches=1, step=0, progress=0.0, world=experiment.world
        )
    with torch.no_grad():
        experiment.method.model.get_submodule("heads.instance").weight.fill_(torch.nan)  # type: ignore[operator]
    losses, culprits = compute_sample_losses(experiment, [part])
    assert culprits == ["heads.instance"]
    assert losses["instance"].isnan().all()
    assert losses["rgb"].isfinite().all()
    assert losses["rgb"].shape == (8,)


@pytest.mark.compile
def test_a_step_of_a_compiled_run_is_replayed_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    training = CONFIG.training.model_copy(update={"compile": "blocks"})
    experiment = build_pretraining(CONFIG.model_copy(update={"training": training}), World())
    with experiment.open_batches(0) as batches:
        parts = experiment.task.split(next(batches), num_micro_batches=1, step=0, progress=0.0, world=experiment.world)
    losses, culprits = compute_sample_losses(experiment, [*parts])
    assert not culprits
    assert losses["rgb"].isfinite().all()


def test_a_step_outside_the_run_is_rejected(run: Path) -> None:
    with pytest.raises(UserError) as caught:
        replay_step(load_recipe(str(run)), run, 4)
    assert str(caught.value) == "--replay: expected a step from 1 to 3, got 4. Choose a step of the run"


def test_the_config_of_a_run_is_a_recipe(run: Path) -> None:
    config = load_recipe(str(run))
    assert isinstance(config, RecipeConfig)
    assert config.method.channels == {"semantic": 23, "rgb": 3}  # as the data has them
    assert json.loads((run / "state.json").read_text())["status"] == "finished"
