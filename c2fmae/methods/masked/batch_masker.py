"""Masks and counts of a batch, made by data workers: everything of a training step that needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.masks import GranularityMembers, Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.methods.masked.mask_sampler import MaskSampler
from c2fmae.methods.masked.model_inputs import check_inputs
from c2fmae.methods.masked.objectives import Objective, count_hidden_values


@dataclass(frozen=True)
class MaskedScenes:
    """The scenes of a micro-batch, their masks, and their counts."""

    scenes: SceneBatch
    """The maps that the model encodes and predicts, as they are stored."""
    masks: Masks
    count_names: tuple[str, ...]
    counts: Int[Tensor, " count"]
    """The counts that losses are divided by, and the numbers of hidden and of labelled cells of id maps."""

    def to(self, device: str | torch.device) -> "MaskedScenes":
        """Return the micro-batch with its tensors on a device, without waiting for copies from page-locked memory."""
        return replace(
            self,
            scenes=self.scenes.to(device),
            masks=self.masks.to(device, non_blocking=True),
            counts=self.counts.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "MaskedScenes":
        """Return the micro-batch with its tensors in page-locked memory."""
        return replace(
            self,
            scenes=self.scenes.pin_memory(),
            masks=self.masks.pin_memory(),
            counts=self.counts.pin_memory(),
        )


@dataclass(frozen=True)
class BatchMasker:
    """Draws the masks of batches. It is sent to the processes that load data, so it holds no model."""

    masking: MaskSampler
    objectives: Mapping[str, Objective]
    seed: int

    def prepare(
        self, scenes: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[MaskedScenes]:
        """Return the batch of a rank in micro-batches, with masks that depend on seed, step and progress alone.

        Raise a UserError if the scenes do not fit the method. Values are checked too while the scenes are on the CPU,
        as they are in a data worker, also for training on a GPU.
        """
        masks = self.masking.sample(
            scenes,
            progress=progress,
            generator=self.masking.seed_step(self.seed, step),
            global_rows=(world.rank * len(scenes), world.size * len(scenes)),
            decodes_all=False,
        )
        check_inputs(self.masking.config, self.masking.patch_size, scenes)
        size = len(scenes) // num_micro_batches
        return _join_storages(
            [self._make_micro_batch(scenes, masks, first, first + size) for first in range(0, len(scenes), size)]
        )

    def _make_micro_batch(self, scenes: SceneBatch, masks: Masks, first: int, last: int) -> MaskedScenes:
        config, masks = self.masking.config, masks.slice_images(first, last)
        scenes = scenes.slice_scenes(first, last)
        maps = {name: scenes.maps[name] for name in config.granularities}
        counts = count_hidden_values(self.objectives, maps, masks, config.loss_average)
        if masks.visible_idx.device.type == "cpu":  # elsewhere exact lists would synchronise
            masks = masks.with_members()
        return MaskedScenes(replace(scenes, maps=maps), masks, tuple(counts), torch.stack([*counts.values()]))


def _join_storages(micro_batches: Sequence[MaskedScenes]) -> list[MaskedScenes]:
    """Return micro-batches whose lists of members and counts are parts of one tensor.

    A storage needs an open file for as long as it is on its way from a data worker, and few may be open at once. Maps
    and masks are parts of the tensors of their batch already.
    """
    tensors = [tensor for each in micro_batches for tensor in _list_integers(each)]
    joined = iter(torch.cat(tensors).split([len(tensor) for tensor in tensors]))
    return [
        replace(
            each,
            masks=replace(
                each.masks,
                members=each.masks.members
                and tuple(GranularityMembers(next(joined), next(joined)) for _ in each.masks.members),
            ),
            counts=next(joined),
        )
        for each in micro_batches
    ]


def _list_integers(masked: MaskedScenes) -> list[Tensor]:
    return [*(tensor for members in masked.masks.members or () for tensor in members), masked.counts]
