"""The checkpoint of the weights with the highest score so far, next to a run's checkpoints."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from c2fmae.core.checkpoint import (
    Checkpoint,
    list_checkpoints,
    prune_checkpoints,
    read_metadata,
    save_checkpoint,
    step_from_path,
)
from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingState
from c2fmae.eval.metrics import Metric

_SCORE_KEY, _AVERAGED_KEY = "score", "averaged"


class BestScore(NamedTuple):
    """The highest score on the test images during a training."""

    step: int
    value: float
    """The score, in [0, 1]."""
    is_averaged: bool = False
    """Whether it is that of averaged weights."""

    def to_metric(self, key: str, num_images: int, **tags: str) -> Metric:
        """Return it as a metric in percent."""
        weights = ", averaged weights" if self.is_averaged else ""
        note = f"step {self.step:,}{weights}: chosen on the test images, so it is biased upwards"
        return Metric(key, 100 * self.value, num_images, tags=tags, notes=(note,))


@dataclass(frozen=True)
class BestCheckpoint:
    """A directory with one checkpoint, which contains only the weights with the highest score."""

    checkpoint_dir: Path
    world: World

    def discard_after(self, step: int) -> None:
        """Delete checkpoints of later steps, which a resumed run will write again."""
        if self.world.is_main:
            for path in list_checkpoints(self.checkpoint_dir):
                if (step_from_path(path) or 0) > step:
                    shutil.rmtree(path)

    def update(self, training: TrainingState, scores: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Save the weights if their score is higher than all before. All processes must call this.

        `scores` are those of the weights (`model`) and, if there are any, of the averaged weights (`ema`). The weights
        with the higher score are saved.
        """
        best_name = max(scores, key=lambda name: scores[name])
        previous = self.score.value if self.score is not None else -inf
        if not self.world.broadcast_object(self.world.is_main and scores[best_name] > previous):
            return
        tensors = Checkpoint(training.step, training.gather_tensors(), {}).tensors_of(best_name)
        if self.world.is_main:
            weights = {f"model/{name}": tensor for name, tensor in tensors.items()}
            best_metadata = {**metadata, _SCORE_KEY: scores[best_name], _AVERAGED_KEY: best_name == "ema"}
            save_checkpoint(self.checkpoint_dir, Checkpoint(training.step, weights, best_metadata))
            prune_checkpoints(self.checkpoint_dir, keep_last=1, keep_every=None)

    @property
    def score(self) -> BestScore | None:
        """The highest score so far; None before the first."""
        checkpoints = list_checkpoints(self.checkpoint_dir)
        if not checkpoints:
            return None
        metadata, step = read_metadata(checkpoints[-1]), step_from_path(checkpoints[-1])
        return BestScore(step or 0, float(metadata[_SCORE_KEY]), bool(metadata.get(_AVERAGED_KEY)))
