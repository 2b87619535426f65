"""Masked autoencoding as the training loop sees it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.masking.policies import CurriculumPolicy
from c2fmae.methods.masked import MaskedAutoencoding, StepLoss
from c2fmae.models.patches import patchify


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch, ready for the model."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    masks: Masks


@dataclass(frozen=True)
class PretrainingTask:
    """Steps of a method; the masks of a step are drawn for the whole batch, by its number alone."""

    method: MaskedAutoencoding
    seed: int

    def split(
        self, batch: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[MicroBatch]:
        """Hide patches, and cut maps and masks into parts.

        The noise is drawn on the CPU, so that a GPU sees the same masks.
        """
        scenes, micro_batch_size = batch.to(world.device), len(batch) // num_micro_batches
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "masks", step))
        rows = (world.rank * len(batch), world.size * len(batch))
        masks = self.method.sample_masks(scenes, progress=progress, generator=generator, global_rows=rows)
        maps = self.method.prepare_inputs(scenes)
        return [
            MicroBatch(
                batch.keys[first : first + micro_batch_size],
                {name: tensor[first : first + micro_batch_size] for name, tensor in maps.items()},
                masks.slice_images(first, first + micro_batch_size),
            )
            for first in range(0, len(batch), micro_batch_size)
        ]

    def compute_counts(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """Return what each loss is a mean over; and of id maps, how many hidden cells there are, and are labelled."""
        counts = self.method.loss_counts(micro_batch.maps, micro_batch.masks)
        for index, name in enumerate(micro_batch.masks.granularities):
            if GRANULARITIES.get(name).kind == "ids":
                is_masked, ids = micro_batch.masks.is_masked[:, index], micro_batch.maps[name]
                cells = ids[0].numel() // is_masked.shape[1]
                labelled = patchify(ids.unsqueeze(1), math.isqrt(cells)) != IGNORE
                counts[f"hidden/{name}"] = is_masked.sum() * cells
                counts[f"valid/{name}"] = (labelled.sum(dim=2) * is_masked).sum()
        return counts

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> dict[str, float]:
        """Return which share of the hidden cells somebody labelled, and how far the curriculum is."""
        names = [name.removeprefix("hidden/") for name in counts if name.startswith("hidden/")]
        valid_fractions = {
            f"valid/{name}": counts[f"valid/{name}"] / max(counts[f"hidden/{name}"], 1) for name in names
        }
        policy = self.method.policy
        if not isinstance(policy, CurriculumPolicy):
            return valid_fractions
        alpha, beta = policy.curriculum(progress)
        return {**valid_fractions, "alpha": alpha, "beta": beta}

    def compute_losses(self, model: nn.Module, micro_batch: MicroBatch, counts: Mapping[str, Tensor]) -> StepLoss:
        """Predict what is hidden; the parts' losses add up to that of the batch."""
        return self.method.compute_loss(
            model(micro_batch.maps, micro_batch.masks), micro_batch.maps, micro_batch.masks, counts
        )

    def sample_keys(self, micro_batch: MicroBatch) -> Sequence[str]:
        """Return the scenes' names."""
        return micro_batch.keys
