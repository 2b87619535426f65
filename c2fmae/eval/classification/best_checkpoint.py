"""The weights that did best so far, beside a run's checkpoints."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from c2fmae.core.checkpoint import Checkpoint, checkpoints_in, facts_of, prune, save_checkpoint, step_of
from c2fmae.core.distributed import World
from c2fmae.core.loop import Training

_SCORE = "score"


@dataclass(frozen=True)
class Best:
    """A folder that holds one checkpoint of weights alone: that of the highest score."""

    folder: Path
    world: World

    def begin(self, step: int) -> None:
        """Forget what a run that was killed had found beyond the step that it goes on from: it will find it again."""
        if self.world.is_first:
            for path in checkpoints_in(self.folder):
                if (step_of(path) or 0) > step:
                    shutil.rmtree(path)

    def offer(self, training: Training, scores: Mapping[str, float], facts: Mapping[str, Any]) -> None:
        """Keep the weights if none had so high a score before; all processes call this.

        `scores` are those of the weights, `model`, and of their average, `ema`, if there is one: of the two, the
        higher one's are kept.
        """
        part = max(scores, key=lambda name: scores[name])
        if not self.world.share(self.world.is_first and scores[part] > self.score):
            return
        tensors = Checkpoint(training.step, training.tensors(), {}).part(part)
        if self.world.is_first:
            weights = {f"model/{name}": each for name, each in tensors.items()}
            told = {**facts, _SCORE: scores[part], "averaged": part == "ema"}
            save_checkpoint(self.folder, Checkpoint(training.step, weights, told))
            prune(self.folder, keep_last=1, keep_every=None)

    @property
    def score(self) -> float:
        """The highest score so far."""
        newest = checkpoints_in(self.folder)
        return float(facts_of(newest[-1])[_SCORE]) if newest else -inf

    @property
    def step(self) -> int | None:
        """The step whose weights are kept."""
        newest = checkpoints_in(self.folder)
        return step_of(newest[-1]) if newest else None
