"""The losses of training, evaluated on held-out scenes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from c2fmae.core.distributed import World
from c2fmae.core.loop import autocast
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.core.training import TrainingConfig
from c2fmae.data import Scenes, Transform
from c2fmae.data.loader import load_first_readable
from c2fmae.methods.protocol import Method

SCENES_PER_BATCH = 32
"""Scenes per draw of masks: independent of the number of processes, each of which evaluates complete batches."""


@dataclass(frozen=True)
class HeldOutEvaluator:
    """An evaluator of methods on up to `max_scenes` scenes, evenly spaced in the held-out set."""

    scenes: Scenes
    view: Transform
    max_scenes: int
    world: World

    @cached_property
    def batches(self) -> Mapping[int, SceneBatch]:
        """Batches of this rank by number, cached: they are the same in every evaluation."""
        indices = np.linspace(0, len(self.scenes), min(self.max_scenes, len(self.scenes)), endpoint=False).astype(int)
        return {
            rows.start // SCENES_PER_BATCH: SceneBatch.stack(
                [
                    self.view(load_first_readable(self.scenes, int(indices[row]), []), np.random.default_rng([0, row]))
                    for row in rows
                ]
            )
            for rows in self.world.rank_chunks(len(indices), SCENES_PER_BATCH)
        }

    def compute_losses(self, method: Method, config: TrainingConfig) -> dict[str, float]:
        """Return the losses over the scenes of all ranks, as if they were one batch."""
        is_training, weights = method.model.training, method.loss_weights
        method.model.eval()
        sums = torch.zeros(2, len(weights), dtype=torch.float64, device=self.world.device)
        with torch.no_grad(), autocast(config, self.world.device):
            for number, batch in self.batches.items():
                seed = derive_seed(config.seed, "held-out", number)
                losses = method.sum_held_out_losses(batch.to(self.world.device), seed=seed)
                sums += torch.stack([torch.stack([*losses[name]]).double() for name in weights], dim=1)
        method.model.train(is_training)
        errors, counts = self.world.all_reduce(sums)
        means = dict(zip(weights, (errors / counts.clamp(min=1)).tolist(), strict=True))
        total = sum(weights[name] * mean for name, mean in means.items())
        return {"held_out/loss": total, **{f"held_out/{name}": mean for name, mean in means.items()}}
