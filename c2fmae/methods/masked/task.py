"""The interface of masked autoencoding to the training loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from torch import Tensor, nn

from c2fmae.core.compilation import compile_function
from c2fmae.core.distributed import World
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.loop import StepLoss
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import CompiledParts
from c2fmae.masking.policies import CurriculumPolicy
from c2fmae.methods.masked import MaskedAutoencoding
from c2fmae.models.patches import patchify


@dataclass(frozen=True)
class MicroBatch:
    """Inputs of the model for a part of a batch."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    masks: Masks


@dataclass(frozen=True)
class PretrainingTask:
    """The training task of a method. The masks of a step are drawn for the global batch, from the seed and the step."""

    method: MaskedAutoencoding
    seed: int
    compiled_parts: CompiledParts = field(default="off", kw_only=True)

    def split(
        self, batch: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[MicroBatch]:
        """Draw masks, and split inputs and masks into micro-batches."""
        scenes, micro_batch_size = batch.to(world.device), len(batch) // num_micro_batches
        generator = self.method.masking.seed_step(self.seed, step)
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
        """Return the count that each loss is divided by, and the numbers of hidden and of labelled cells of id maps."""
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
        """Return the labelled fraction of the hidden cells of id maps, and α and β if the policy has a curriculum."""
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
        """Predict hidden patches and return the loss; the losses of micro-batches add up to that of the batch."""
        maps, masks = micro_batch.maps, micro_batch.masks
        compute_loss = partial(self.loss_function, maps=maps, masks=masks, counts=counts)
        return model(maps, masks, compute_loss)  # type: ignore[no-any-return]

    @cached_property
    def loss_function(self) -> Callable[..., StepLoss]:
        """The losses of the method, compiled if blocks are. In a compiled model they are a part of its graph."""
        compute_loss = self.method.compute_loss
        return compile_function(compute_loss) if self.compiled_parts == "blocks" else compute_loss

    def sample_keys(self, micro_batch: MicroBatch) -> Sequence[str]:
        """Return the keys of the scenes."""
        return micro_batch.keys
