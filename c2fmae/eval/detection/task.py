"""Detection as a task of the training loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.loop import StepLoss, Task
from c2fmae.core.seeding import derive_seed
from c2fmae.data.detection_batch import DetectionBatch
from c2fmae.eval.training_inputs import standardise_batch
from c2fmae.models.detectors import Detector


@dataclass(frozen=True)
class DetectionMicroBatch:
    """A part of a batch, prepared for the detector."""

    images: Float[Tensor, "sample channels height width"]
    """Standardised images."""
    batch: DetectionBatch
    """Their objects."""
    seeds: Int64[Tensor, " sample"]
    """A seed for each image, from which its anchors and regions are sampled."""


@dataclass(frozen=True)
class DetectionTask(Task[DetectionBatch, DetectionMicroBatch]):
    """Steps of training a detector. Losses are means over the images of the global batch.

    The loss of masks is a mean over the images with objects. Both numbers are known before the forward pass, so that
    parts of a batch add up.
    """

    detector: Detector
    seed: int

    def split(
        self, batch: DetectionBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[DetectionMicroBatch]:
        """Standardise the images, and split the batch into micro-batches."""
        del progress
        batch = batch.to(world.device)
        images = standardise_batch(self.detector.backbone, batch.images, batch.sizes)
        size, first_row = len(batch) // num_micro_batches, world.rank * len(batch)
        seeds = torch.tensor(
            [derive_seed(self.seed, "regions", step, row) for row in range(first_row, first_row + len(batch))]
        )
        parts = zip(images.split(size), batch.split(size), seeds.split(size), strict=True)
        return [DetectionMicroBatch(*part) for part in parts]

    def compute_counts(self, micro_batch: DetectionMicroBatch) -> dict[str, Tensor]:
        """Return the number of images, and of those with objects."""
        counts = micro_batch.batch.counts
        numbers = torch.tensor([len(counts), int((counts > 0).sum())]).to(micro_batch.images.device, non_blocking=True)
        return {"images": numbers[0], "with_objects": numbers[1]}

    def compute_losses(
        self, model: nn.Module, micro_batch: DetectionMicroBatch, counts: Mapping[str, Tensor]
    ) -> StepLoss:
        """Return the micro-batch's part of the losses; without any object, that of masks is 0."""
        batch = micro_batch.batch
        losses: dict[str, Tensor] = model(
            micro_batch.images,
            batch.sizes,
            batch.boxes,
            batch.labels,
            batch.counts,
            batch.masks,
            micro_batch.seeds,
        )
        divisors = {"mask": counts["with_objects"].clamp(min=1)}
        terms = {name: loss.sum() / divisors.get(name, counts["images"]) for name, loss in losses.items()}
        total = torch.stack(list(terms.values())).sum()
        return StepLoss(total, {name: term.detach() for name, term in terms.items()})

    def sample_keys(self, micro_batch: DetectionMicroBatch) -> Sequence[str]:
        """Return the keys of the samples."""
        return micro_batch.batch.keys
