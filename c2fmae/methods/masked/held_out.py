"""The losses of training, evaluated on held-out scenes."""

from collections.abc import Iterator, Mapping
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
from c2fmae.methods import MaskedAutoencoding

EVALUATION_PROGRESS = 1.0
"""Masks are those of the end of training, so that losses of different epochs can be compared."""

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
        rng = np.random.default_rng(0)
        return {
            rows.start // SCENES_PER_BATCH: SceneBatch.stack(
                [self.view(load_first_readable(self.scenes, int(indices[row]), []), rng) for row in rows]
            )
            for rows in self.world.rank_chunks(len(indices), SCENES_PER_BATCH)
        }

    def compute_losses(self, method: MaskedAutoencoding, config: TrainingConfig) -> dict[str, float]:
        """Return the losses over the scenes of all ranks, as if they were one batch."""
        is_training = method.model.training
        method.model.eval()
        sums = torch.zeros(2, len(method.objectives), dtype=torch.float64, device=self.world.device)
        with torch.no_grad(), autocast(config, self.world.device):
            for errors, counts in self._loss_sums(method, config.seed):
                sums += torch.stack([errors, counts])
        method.model.train(is_training)
        errors, counts = self.world.all_reduce(sums)
        means = dict(zip(method.objectives, (errors / counts.clamp(min=1)).tolist(), strict=True))
        total = sum(objective.weight * means[name] for name, objective in method.objectives.items())
        return {"held_out/loss": total, **{f"held_out/{name}": mean for name, mean in means.items()}}

    def _loss_sums(self, method: MaskedAutoencoding, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        ones = {name: torch.ones((), dtype=torch.long, device=self.world.device) for name in method.objectives}
        for number, batch in self.batches.items():
            scenes = batch.to(self.world.device)
            generator = torch.Generator().manual_seed(derive_seed(seed, "held-out", number))
            masks = method.sample_masks(scenes, progress=EVALUATION_PROGRESS, generator=generator)
            maps = method.prepare_inputs(scenes)
            counts = method.loss_counts(maps, masks)
            error_sums = method.compute_loss(method.model(maps, masks), maps, masks, ones).terms
            yield (
                torch.stack([*error_sums.values()]).double(),
                torch.stack([counts[name] for name in error_sums]).double(),
            )
