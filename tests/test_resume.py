"""Runs resume only from checkpoints that are their own and finite, and end with a checkpoint and a page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from c2fmae.core.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.experiment import RunOutcome
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.classification.experiment import finetune
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import RecipeConfig, load_recipe
from tests.eval.classification.tiny_finetuning import (
    make_quick_config,
    write_pretrained_checkpoint,
    write_train_test_sets,
)

SETTINGS = (
    "training.steps=3",
    "training.batch_size=4",
    "training.precision=fp32",
    "method.encoder.depth=1",
    "method.decoder.options.depth=1",
    "saving.steps=1",
    "saving.keep_last=9",
    "watching.figures=0",
    "data.held_out_samples=4",
    "data.workers=0",
)


def make_config(*overrides: str) -> RecipeConfig:
    return load_recipe("c2fmae-debug", [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of three steps, all of them saved. Copy it before changing it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    pretrain(make_config(), out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def step_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def rewrite(path: Path, change: Callable[[Checkpoint], Checkpoint]) -> None:
    save_checkpoint(path.parent, change(load_checkpoint(path)))


def make_weights_nan(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {
        name: tensor * torch.nan if name.startswith("model/") else tensor for name, tensor in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.step, tensors, checkpoint.metadata)


def without_run_id(checkpoint: Checkpoint) -> Checkpoint:
    metadata = {key: value for key, value in checkpoint.metadata.items() if key != "run_id"}
    return Checkpoint(checkpoint.step, checkpoint.tensors, metadata)


def set_training(**values: object) -> Callable[[Checkpoint], Checkpoint]:
    def change(checkpoint: Checkpoint) -> Checkpoint:
        config = checkpoint.metadata["config"]
        config = {**config, "training": {**config["training"], **values}}
        return Checkpoint(checkpoint.step, checkpoint.tensors, {**checkpoint.metadata, "config": config})

    return change


def poison_weights_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the weights NaN in the update of a step."""
    update = TrainingLoop._update

    def spoil(self: TrainingLoop[object, object], training: TrainingState, *values: Any) -> None:
        update(self, training, *values)
        if training.step + 1 == step:
            with torch.no_grad():
                next(training.model.parameters()).fill_(torch.nan)

    monkeypatch.setattr(TrainingLoop, "_update", spoil)


def train_pretraining(out: Path, *overrides: str) -> RunOutcome:
    return pretrain(make_config(*overrides), out)


def train_classifier(out: Path, *overrides: str, resume: bool = False) -> RunOutcome:
    source, data = out.parent / "source", out.parent / "data"
    if not resume:
        write_train_test_sets(data)
        write_pretrained_checkpoint(source)
    config = make_quick_config(source / "step-00000001", data, "training.steps=3", *overrides)
    return finetune(config, out, World(), resume=resume)


@pytest.mark.parametrize("train", [train_pretraining, train_classifier])
@pytest.mark.parametrize(
    ("saving", "last"),
    [
        ("saving.steps=1", "The last checkpoint is step-00000002"),
        ("saving.steps=null", "There is no checkpoint"),
    ],
)
def test_a_run_whose_last_step_cannot_be_saved_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., RunOutcome],
    saving: str,
    last: str,
) -> None:
    poison_weights_at(monkeypatch, 3)
    with pytest.raises(RunError) as caught:
        train(tmp_path / "run", saving)
    assert str(caught.value) == (
        f"the weights are not finite after step 3, so they were not saved. {last}. Resume with --accept-changes and a "
        "lower learning rate, training.clip=1 or training.precision=fp32"
    )
    assert (RunDir(tmp_path / "run").read_state() or {})["status"] == "failed"
    saved = [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")]
    assert saved == (["step-00000001", "step-00000002"] if "step-" in last else [])


def test_a_checkpoint_that_is_not_finite_is_skipped_on_resume(
    finished: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(step_path(run, 3), make_weights_nan)
    assert pretrain(make_config(), run, resume=True).status == "finished"
    assert f"{step_path(run, 3)}: its weights are not finite" in caplog.text
    expected, found = (load_checkpoint(step_path(path, 3)).tensors for path in (finished, run))
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    for step in (1, 2, 3):
        rewrite(step_path(run, step), make_weights_nan)
    with pytest.raises(UserError, match="no checkpoint is intact"):
        pretrain(make_config(), run, resume=True)


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_checkpoint_of_another_run_is_rejected(run: Path, tmp_path: Path, is_linked: bool) -> None:
    pretrain(make_config(), tmp_path / "other")
    shutil.rmtree(step_path(run, 3))
    if is_linked:
        step_path(run, 3).symlink_to(step_path(tmp_path / "other", 3))
    else:
        shutil.copytree(step_path(tmp_path / "other", 3), step_path(run, 3))
    (run / "state.json").write_text('{"status": "running", "step": 2}')
    for accept_changes in (False, True):
        with pytest.raises(UserError) as caught:
            pretrain(make_config(), run, resume=True, accept_changes=accept_changes)
        ids = [json.loads((path / "environment.json").read_text())["run_id"] for path in (tmp_path / "other", run)]
        assert str(caught.value) == (
            f"{step_path(run, 3)}: is a checkpoint of another run (its run_id is {ids[0]}, that of this run {ids[1]}). "
            "Move it to another directory to resume without it, or use it as initial weights of a new run"
        )


def test_a_checkpoint_without_an_id_is_compared_by_its_config(run: Path) -> None:
    rewrite(step_path(run, 3), without_run_id)
    rewrite(step_path(run, 3), set_training(lr=0.5, seed=7))
    with pytest.raises(UserError) as caught:
        pretrain(make_config(), run, resume=True)
    assert str(caught.value) == (
        f"{run}: the config differs from that of the run. Use --accept-changes to resume with:\n"
        "  training.lr: 0.5 → 0.001 (since step-00000003, which may be of another run)\n"
        "  training.seed: 7 → 0 (since step-00000003, which may be of another run)"
    )
    rewrite(step_path(run, 3), set_training(lr=1e-3, seed=0))
    pretrain(make_config("data.workers=1", "watching.log_every=3"), run, resume=True)


@pytest.mark.parametrize("key", ["config", "backbone"])
def test_a_checkpoint_without_the_metadata_of_a_run_is_rejected(run: Path, key: str) -> None:
    def remove_key(checkpoint: Checkpoint) -> Checkpoint:
        metadata = {name: value for name, value in checkpoint.metadata.items() if name != key}
        return Checkpoint(checkpoint.step, checkpoint.tensors, metadata)

    rewrite(step_path(run, 3), remove_key)
    with pytest.raises(UserError, match=f"step-00000003: its metadata has no '{key}'"):
        pretrain(make_config(), run, resume=True)


def test_accepted_changes_are_not_reported_again(run: Path) -> None:
    changed = make_config("training.lr=2e-3", "training.steps=4")
    with pytest.raises(UserError, match=r"training.steps: 3 → 4\n  training.lr: 0.001 → 0.002$"):
        pretrain(changed, run, resume=True)
    pretrain(changed, run, resume=True, accept_changes=True)
    shutil.rmtree(step_path(run, 4))  # as if killed before its first save
    pretrain(changed, run, resume=True)
    assert load_checkpoint(step_path(run, 4)).metadata["run_id"] == RunDir(run).read_run_id()


def test_a_copied_run_directory_and_one_without_ids_resume(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(step_path(run, 3))
    shutil.copytree(run, tmp_path / "copy")
    (run / "environment.json").unlink()
    for path in (run, tmp_path / "copy"):
        assert pretrain(make_config(), path, resume=True).status == "finished"
    assert RunDir(run).read_run_id() == RunDir(tmp_path / "copy").read_run_id()
    for step in (1, 2, 3):
        rewrite(step_path(run, step), without_run_id)
    shutil.rmtree(step_path(run, 3))
    (run / "environment.json").write_text("{}")
    assert pretrain(make_config(), run, resume=True).status == "finished"
    run_id = RunDir(run).read_run_id()
    assert run_id
    assert load_checkpoint(step_path(run, 3)).metadata["run_id"] == run_id


def test_a_missing_page_of_a_finished_run_is_written_on_resume(run: Path, tmp_path: Path) -> None:
    page = run / "report.html"
    expected = page.read_text()
    page.unlink()
    assert pretrain(make_config(), run, resume=True).status == "finished"
    assert page.read_text() == expected
    page.write_text("older")
    pretrain(make_config(), run, resume=True)
    assert page.read_text() == "older"  # a finished run is not changed

    train_classifier(tmp_path / "classifier")
    page = tmp_path / "classifier/report.html"
    expected = page.read_text()
    page.unlink()
    train_classifier(tmp_path / "classifier", resume=True)
    assert page.read_text() == expected
