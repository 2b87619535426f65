"""Segmentation as a task of the training loop, and the inputs of segmenters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.loop import StepLoss, Task
from c2fmae.core.scene import Scene
from c2fmae.data.crops.scaled_crop import ScaledCrop
from c2fmae.data.segmentation_batch import SegmentationBatch, SegmentationSample
from c2fmae.eval.training_inputs import standardise_batch
from c2fmae.models.segmenters import Segmenter
from c2fmae.models.segmenters.losses import upsampled_cross_entropy


@dataclass(frozen=True)
class SegmentationMicroBatch:
    """A part of a batch, prepared for the segmenter."""

    keys: tuple[str, ...]
    images: Float[Tensor, "sample channels height width"]
    ids: UInt8[Tensor, "sample rows columns"]


@dataclass(frozen=True)
class SegmentationTask(Task[SegmentationBatch, SegmentationMicroBatch]):
    """Steps of training a segmenter. The loss of every labelled pixel of the global batch has the same weight."""

    segmenter: Segmenter
    auxiliary_weight: float

    def split(
        self, batch: SegmentationBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[SegmentationMicroBatch]:
        """Standardise the images, and split the batch into micro-batches."""
        del step, progress
        batch = batch.to(world.device)
        images = standardise_batch(self.segmenter.backbone, batch.images, batch.sizes)
        size = len(batch) // num_micro_batches
        return [
            SegmentationMicroBatch(
                batch.keys[first : first + size], images[first : first + size], batch.ids[first : first + size]
            )
            for first in range(0, len(batch), size)
        ]

    def compute_counts(self, micro_batch: SegmentationMicroBatch) -> dict[str, Tensor]:
        """Return the number of labelled pixels, by which the losses of both heads are divided."""
        return {"labelled": (micro_batch.ids != IGNORE).sum()}

    def compute_losses(
        self, model: nn.Module, micro_batch: SegmentationMicroBatch, counts: Mapping[str, Tensor]
    ) -> StepLoss:
        """Return the micro-batch's part of the cross-entropy; without any labelled pixel, it is 0."""
        num_labelled = counts["labelled"].clamp(min=1)
        losses = {
            name: upsampled_cross_entropy(logits, micro_batch.ids) / num_labelled
            for name, logits in model(micro_batch.images).items()
        }
        if "auxiliary" not in losses:
            return StepLoss(losses["main"], {})
        total = losses["main"] + self.auxiliary_weight * losses["auxiliary"]
        return StepLoss(total, {name: loss.detach() for name, loss in losses.items()})

    def sample_keys(self, micro_batch: SegmentationMicroBatch) -> Sequence[str]:
        """Return the keys of the samples."""
        return micro_batch.keys


@dataclass(frozen=True)
class LabelledCrop:
    """A crop whose class ids are checked."""

    crop: ScaledCrop
    num_classes: int

    def __call__(self, scene: Scene, rng: np.random.Generator) -> SegmentationSample:
        """Return a random crop."""
        sample = self.crop(scene, rng)
        check_class_ids(sample.key, sample.ids, self.num_classes)
        return sample


def check_class_ids(key: str, ids: UInt8[Tensor, "rows columns"], num_classes: int) -> None:
    """Raise a `UserError` for an id that is no class."""
    is_invalid = (ids >= num_classes) & (ids != IGNORE)
    if bool(is_invalid.any()):
        raise UserError(
            f"{key}: its semantic map has the id {int(ids[is_invalid][0])} (expected 0 to {num_classes - 1}, or "
            f"{IGNORE} where nothing is labelled). Correct the map, or add the class to dataset.json"
        )
