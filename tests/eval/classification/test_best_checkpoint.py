"""The weights that did best so far: which are kept, and what of a run that was killed is forgotten."""

from pathlib import Path

import pytest
import torch
from torch import nn

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingState
from c2fmae.core.training import TrainingConfig
from c2fmae.eval.classification.best_checkpoint import BestCheckpoint

pytestmark = pytest.mark.numeric


@pytest.fixture
def training() -> TrainingState:
    return TrainingState.create(nn.Linear(2, 2), TrainingConfig(steps=9, lr=1.0, ema=0.5))


def offer(best: BestCheckpoint, training: TrainingState, step: int, **scores: float) -> None:
    training.step = step
    best.update(training, scores, {"about": step})


def test_only_a_higher_score_takes_the_place_of_what_is_kept(training: TrainingState, tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path, World())
    assert not list_checkpoints(tmp_path)
    for step, score, kept in ((1, 0.0, 1), (2, 0.5, 2), (3, 0.5, 2), (4, 0.4, 2), (5, 0.6, 5)):
        offer(best, training, step, model=score)
        assert (best.step, [path.name for path in list_checkpoints(tmp_path)]) == (kept, [f"step-{kept:08d}"])
    assert best.score == 0.6
    assert load_checkpoint(tmp_path / "step-00000005").metadata["about"] == 5


def test_the_weights_are_those_that_scored_the_average_or_not(training: TrainingState, tmp_path: Path) -> None:
    assert training.ema is not None
    with torch.no_grad():
        training.ema["weight"].fill_(7)
    best = BestCheckpoint(tmp_path, World())
    offer(best, training, 1, model=0.2, ema=0.3)
    kept = load_checkpoint(tmp_path / "step-00000001")
    assert kept.metadata["averaged"]
    assert set(kept.tensors) == {"model/weight", "model/bias"}
    assert (kept.tensors["model/weight"] == 7).all()
    offer(best, training, 2, model=0.5, ema=0.4)
    kept = load_checkpoint(tmp_path / "step-00000002")
    assert not kept.metadata["averaged"]
    assert torch.equal(kept.tensors["model/weight"], training.model.state_dict()["weight"])


def test_what_lies_beyond_the_step_that_a_run_goes_on_from_is_forgotten(
    training: TrainingState, tmp_path: Path
) -> None:
    best = BestCheckpoint(tmp_path, World())
    offer(best, training, 4, model=0.5)
    best.discard_after(4)
    assert best.step == 4
    best.discard_after(3)
    assert best.step is None
