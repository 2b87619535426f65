"""The interface of masked autoencoding to the training loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from c2fmae.core.compilation import compile_function
from c2fmae.core.distributed import World
from c2fmae.core.loop import StepLoss
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import CompiledParts
from c2fmae.masking.policies import CurriculumPolicy
from c2fmae.methods.masked import MaskedAutoencoding
from c2fmae.methods.masked.batch_masker import BatchMasker, MaskedScenes
from c2fmae.methods.masked.model_inputs import standardise_inputs


@dataclass(frozen=True)
class MicroBatch:
    """Inputs of the model for a part of a batch, and its counts."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    masks: Masks
    counts: Mapping[str, Tensor]


@dataclass(frozen=True)
class PretrainingTask:
    """The training task of a method. The masks of a step are drawn for the global batch, from the seed and the step."""

    method: MaskedAutoencoding
    seed: int
    compiled_parts: CompiledParts = field(default="off", kw_only=True)

    @property
    def preparer(self) -> BatchMasker:
        """The part of the task that data workers do: masks and counts."""
        return BatchMasker(self.method.masking, self.method.objectives, self.seed)

    def split(
        self,
        batch: SceneBatch | Sequence[MaskedScenes],
        *,
        num_micro_batches: int,
        step: int,
        progress: float,
        world: World,
    ) -> list[MicroBatch]:
        """Move the micro-batches to the device, and standardise images there.

        Scenes that no data worker has masked, such as those of another loader, are masked first.
        """
        if isinstance(batch, SceneBatch):
            batch = self.preparer.prepare(
                batch, num_micro_batches=num_micro_batches, step=step, progress=progress, world=world
            )
        return [self._prepare(masked.to(world.device)) for masked in batch]

    def _prepare(self, masked: MaskedScenes) -> MicroBatch:
        counts = dict(zip(masked.count_names, masked.counts.unbind(), strict=True))
        maps = standardise_inputs(self.method.config, masked.scenes)
        return MicroBatch(masked.scenes.keys, maps, masked.masks, counts)

    def compute_counts(self, micro_batch: MicroBatch) -> Mapping[str, Tensor]:
        """Return the count that each loss is divided by, and the numbers of hidden and of labelled cells of id maps."""
        return micro_batch.counts

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> dict[str, float]:
        """Return the labelled fraction of the hidden cells of id maps, and what changes in the course of the run.

        That is the height of images if the method has early image sizes, and α and β if its policy has a curriculum.
        """
        config = self.method.config
        schedules: dict[str, float] = {}
        if config.early_image_sizes:
            schedules["image_height"] = config.choose_image_size(progress)[0]
        if isinstance(self.method.policy, CurriculumPolicy):
            schedules["alpha"], schedules["beta"] = self.method.policy.curriculum(progress)
        names = [name.removeprefix("hidden/") for name in counts if name.startswith("hidden/")]
        valid_fractions = {
            f"valid/{name}": counts[f"valid/{name}"] / max(counts[f"hidden/{name}"], 1) for name in names
        }
        return {**valid_fractions, **schedules}

    def compute_losses(self, model: nn.Module, micro_batch: MicroBatch, counts: Mapping[str, Tensor]) -> StepLoss:
        """Predict hidden patches and return the loss; the losses of micro-batches add up to that of the batch."""
        maps, masks = micro_batch.maps, micro_batch.masks
        if self.compiled_parts == "model":
            counts = dict(counts)  # before the forward pass, since a graph cannot wait for them
        compute_loss = partial(self.loss_function, maps=maps, masks=masks, counts=counts)
        return model(maps, masks, compute_loss)  # type: ignore[no-any-return]

    @cached_property
    def loss_function(self) -> Callable[..., StepLoss]:
        """The losses of the method, compiled if blocks are. In a compiled model they are a part of its graph."""
        if self.compiled_parts != "blocks":
            return self.method.compute_loss
        compute_loss = compile_function(self.method.compute_loss)

        def read_counts_first(
            predictions: Mapping[str, Tensor], maps: Mapping[str, Tensor], masks: Masks, counts: Mapping[str, Tensor]
        ) -> StepLoss:
            return compute_loss(predictions, maps, masks, dict(counts))

        return read_counts_first

    def compute_sample_losses(self, model: nn.Module, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """Return the losses of each sample."""
        maps, masks = micro_batch.maps, micro_batch.masks
        predictions, losses = model(maps, masks), list[dict[str, Tensor]]()
        for row in range(len(micro_batch.keys)):
            of_row = slice(row, row + 1)
            losses.append(
                self.method.compute_loss(
                    {name: tensor[of_row] for name, tensor in predictions.items()},
                    {name: tensor[of_row] for name, tensor in maps.items()},
                    masks.slice_images(row, row + 1),
                ).terms
            )
        return {name: torch.stack([terms[name] for terms in losses]) for name in losses[0]}

    def sample_keys(self, micro_batch: MicroBatch) -> Sequence[str]:
        """Return the keys of the scenes."""
        return micro_batch.keys
