"""Masked autoencoding as the training loop sees it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.masks import Masks
from c2fmae.core.scene import GRANULARITIES, IGNORE, SceneBatch
from c2fmae.core.seeding import seed_of
from c2fmae.methods.masked import MaskedAutoencoding, StepLoss
from c2fmae.models.patches import patchify


@dataclass(frozen=True)
class Part:
    """A part of a batch, ready for the model."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    masks: Masks


@dataclass(frozen=True)
class PretrainingTask:
    """Steps of a method; the masks of a step are drawn for the whole batch, by its number alone."""

    method: MaskedAutoencoding
    seed: int

    def split(self, batch: SceneBatch, *, parts: int, step: int, progress: float, world: World) -> list[Part]:
        """Hide patches, and cut maps and masks into parts.

        The noise is drawn on the CPU, so that a GPU sees the same masks.
        """
        scenes, each = batch.to(world.device), len(batch) // parts
        generator = torch.Generator().manual_seed(seed_of(self.seed, "masks", step))
        rows = (world.rank * len(batch), world.size * len(batch))
        masks = self.method.hide(scenes, progress=progress, generator=generator, rows=rows)
        maps = self.method.prepare(scenes)
        return [
            Part(
                batch.keys[first : first + each],
                {name: tensor[first : first + each] for name, tensor in maps.items()},
                masks.rows(first, first + each),
            )
            for first in range(0, len(batch), each)
        ]

    def counts(self, part: Part) -> dict[str, Tensor]:
        """Return what each loss is a mean over; and of id maps, how many hidden cells there are, and are labelled."""
        counts = self.method.counts(part.maps, part.masks)
        for index, name in enumerate(part.masks.granularities):
            if GRANULARITIES.get(name).kind == "ids":
                is_masked, ids = part.masks.is_masked[:, index], part.maps[name]
                cells = ids[0].numel() // is_masked.shape[1]
                labelled = patchify(ids.unsqueeze(1), math.isqrt(cells)) != IGNORE
                counts[f"hidden/{name}"] = is_masked.sum() * cells
                counts[f"valid/{name}"] = (labelled.sum(dim=2) * is_masked).sum()
        return counts

    def summary(self, counts: Mapping[str, int], progress: float) -> dict[str, float]:
        """Return which share of the hidden cells somebody labelled, and how far the curriculum is."""
        names = [name.removeprefix("hidden/") for name in counts if name.startswith("hidden/")]
        shares = {f"valid/{name}": counts[f"valid/{name}"] / max(counts[f"hidden/{name}"], 1) for name in names}
        curriculum = getattr(self.method.policy, "curriculum", None)
        return shares | (dict(zip(("alpha", "beta"), curriculum(progress), strict=True)) if curriculum else {})

    def losses(self, model: nn.Module, part: Part, counts: Mapping[str, Tensor]) -> StepLoss:
        """Predict what is hidden; the parts' losses add up to that of the batch."""
        return self.method.compare(model(part.maps, part.masks), part.maps, part.masks, counts)

    def keys(self, part: Part) -> Sequence[str]:
        """Return the scenes' names."""
        return part.keys
