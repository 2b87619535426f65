"""The weights that did best so far: which are kept, and what of a run that was killed is forgotten."""

from pathlib import Path

import pytest
import torch
from torch import nn

from c2fmae.core.checkpoint import checkpoints_in, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.loop import Training
from c2fmae.core.training import TrainingConfig
from c2fmae.eval.classification.best_checkpoint import Best


@pytest.fixture
def training() -> Training:
    return Training.start(nn.Linear(2, 2), TrainingConfig(steps=9, lr=1.0, ema=0.5))


def offer(best: Best, training: Training, step: int, **scores: float) -> None:
    training.step = step
    best.offer(training, scores, {"about": step})


def test_only_a_higher_score_takes_the_place_of_what_is_kept(training: Training, tmp_path: Path) -> None:
    best = Best(tmp_path, World())
    assert not checkpoints_in(tmp_path)
    for step, score, kept in ((1, 0.0, 1), (2, 0.5, 2), (3, 0.5, 2), (4, 0.4, 2), (5, 0.6, 5)):
        offer(best, training, step, model=score)
        assert (best.step, [path.name for path in checkpoints_in(tmp_path)]) == (kept, [f"step-{kept:08d}"])
    assert best.score == 0.6
    assert load_checkpoint(tmp_path / "step-00000005").facts["about"] == 5


def test_the_weights_are_those_that_scored_the_average_or_not(training: Training, tmp_path: Path) -> None:
    assert training.average is not None
    with torch.no_grad():
        training.average["weight"].fill_(7)
    best = Best(tmp_path, World())
    offer(best, training, 1, model=0.2, ema=0.3)
    kept = load_checkpoint(tmp_path / "step-00000001")
    assert kept.facts["averaged"]
    assert set(kept.tensors) == {"model/weight", "model/bias"}
    assert (kept.tensors["model/weight"] == 7).all()
    offer(best, training, 2, model=0.5, ema=0.4)
    kept = load_checkpoint(tmp_path / "step-00000002")
    assert not kept.facts["averaged"]
    assert torch.equal(kept.tensors["model/weight"], training.model.state_dict()["weight"])


def test_what_lies_beyond_the_step_that_a_run_goes_on_from_is_forgotten(training: Training, tmp_path: Path) -> None:
    best = Best(tmp_path, World())
    offer(best, training, 4, model=0.5)
    best.begin(4)
    assert best.step == 4
    best.begin(3)
    assert best.step is None
