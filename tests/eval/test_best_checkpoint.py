"""The best checkpoint: when it is replaced, its weights, and its removal on resume."""

from pathlib import Path

import pytest
import torch
from torch import nn

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingState
from c2fmae.core.training import TrainingConfig
from c2fmae.eval.best_checkpoint import BestCheckpoint, BestScore

pytestmark = pytest.mark.numeric


@pytest.fixture
def training() -> TrainingState:
    return TrainingState.create(nn.Linear(2, 2), TrainingConfig(steps=9, lr=1.0, ema=0.5))


def update_best(best: BestCheckpoint, training: TrainingState, step: int, **scores: float) -> None:
    training.step = step
    best.update(training, scores, {"about": step})


def test_only_a_higher_score_replaces_the_checkpoint(training: TrainingState, tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path, World())
    assert not list_checkpoints(tmp_path)
    for step, score, saved_step in ((1, 0.0, 1), (2, 0.5, 2), (3, 0.5, 2), (4, 0.4, 2), (5, 0.6, 5)):
        update_best(best, training, step, model=score)
        assert best.score is not None
        assert (best.score.step, [path.name for path in list_checkpoints(tmp_path)]) == (
            saved_step,
            [f"step-{saved_step:08d}"],
        )
    assert best.score == BestScore(5, 0.6)
    assert load_checkpoint(tmp_path / "step-00000005").metadata["about"] == 5


def test_the_weights_with_the_higher_score_are_saved_averaged_or_not(training: TrainingState, tmp_path: Path) -> None:
    assert training.ema is not None
    with torch.no_grad():
        training.ema["weight"].fill_(7)
    best = BestCheckpoint(tmp_path, World())
    update_best(best, training, 1, model=0.2, ema=0.3)
    assert best.score == BestScore(1, 0.3, is_averaged=True)
    saved = load_checkpoint(tmp_path / "step-00000001")
    assert saved.metadata["averaged"]
    assert set(saved.tensors) == {"model/weight", "model/bias"}
    assert (saved.tensors["model/weight"] == 7).all()
    update_best(best, training, 2, model=0.5, ema=0.4)
    saved = load_checkpoint(tmp_path / "step-00000002")
    assert not saved.metadata["averaged"]
    assert torch.equal(saved.tensors["model/weight"], training.model.state_dict()["weight"])


def test_checkpoints_after_the_resumed_step_are_deleted(training: TrainingState, tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path, World())
    update_best(best, training, 4, model=0.5)
    best.discard_after(4)
    assert best.score == BestScore(4, 0.5)
    best.discard_after(3)
    assert best.score is None
