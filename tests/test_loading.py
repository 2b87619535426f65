"""Loading of pre-training runs."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from c2fmae.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.loading import load_run, open_run_scenes
from c2fmae.models.backbones import load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe

pytestmark = pytest.mark.numeric

SHORT = [
    "training.steps=2",
    "training.warmup_steps=1",
    "data.train.options={size: 64, length: 16, difficulty: easy}",
    "data.held_out=null",
    "watching.figures=0",
    "saving.steps=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loading") / "run"
    pretrain(load_recipe("c2fmae-debug", [*SHORT, "training.ema=0.5"]), out)
    return out


def test_a_run_is_loaded_at_its_end_at_a_step_or_averaged(run: Path) -> None:
    saved = {step: load_checkpoint(run / "checkpoints" / f"step-{step:08d}") for step in (1, 2)}
    loaded = [load_run(run), load_run(run, step=1), load_run(run / "checkpoints" / "step-00000001")]
    assert [each.step for each in loaded] == [2, 1, 1]
    for each in loaded:
        weights = each.method.model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in saved[each.step].tensors_of("model").items())
    average = load_run(run, use_ema=True).method.model.state_dict()
    assert all(torch.equal(average[name], tensor) for name, tensor in saved[2].tensors_of("ema").items())
    assert not torch.equal(average["heads.rgb.weight"], loaded[0].method.model.state_dict()["heads.rgb.weight"])
    assert loaded[0].class_names[0] == "sky"
    assert len(open_run_scenes(loaded[0].config)) == 16


def test_a_run_without_averaged_weights_is_reported(tmp_path: Path) -> None:
    pretrain(load_recipe("c2fmae-debug", SHORT), tmp_path / "run")
    with pytest.raises(UserError) as caught:
        load_run(tmp_path / "run", use_ema=True)
    message = f"{tmp_path / 'run'}: has no averaged weights, since it was trained without training.ema. Leave out --ema"
    assert str(caught.value) == message


def test_a_run_without_checkpoints_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError) as caught:
        load_run(tmp_path)
    assert str(caught.value) == f"{tmp_path}: has no intact checkpoint"


def test_a_path_without_a_run_is_reported(tmp_path: Path) -> None:
    for path, problem in ((tmp_path, "is not a run directory or a checkpoint"), (tmp_path / "none", "does not exist")):
        with pytest.raises(UserError) as caught:
            load_run(path)
        assert str(caught.value) == f"{path}: {problem}. Use a run directory with its checkpoints"


def change_checkpoint(run: Path, out: Path, change: Callable[[Checkpoint], Checkpoint]) -> Path:
    """Write the last checkpoint of a run again, changed and with valid checksums."""
    return save_checkpoint(out, change(load_checkpoint(max((run / "checkpoints").iterdir()))))


def test_a_checkpoint_with_tensors_of_another_dtype_is_rejected(run: Path, tmp_path: Path) -> None:
    path = change_checkpoint(
        run, tmp_path, lambda saved: replace(saved, tensors={name: each.half() for name, each in saved.tensors.items()})
    )
    with pytest.raises(UserError, match=f"^{path}: the checkpoint was changed after it was written: .* torch.float16"):
        load_run(path)
    with pytest.raises(UserError, match=f"^{path}: .* has dtype torch.float16, expected torch.float32, so the"):
        load_backbone(path)


def test_a_checkpoint_that_describes_a_much_larger_model_is_rejected(run: Path, tmp_path: Path) -> None:
    def enlarge(saved: Checkpoint) -> Checkpoint:
        metadata = deepcopy(dict(saved.metadata))
        for encoder in (metadata["backbone"]["encoder"], metadata["config"]["method"]["encoder"]):
            encoder["depth"] = 10**9
        return replace(saved, metadata=metadata)

    path = change_checkpoint(run, tmp_path, enlarge)
    for load in (load_run, load_backbone):
        with pytest.raises(UserError, match=f"^{path}: describes 1,000,000,000 blocks, but its checkpoint holds"):
            load(path)
