"""MoCo (He et al., 2020), with a ViT."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from c2fmae.config.contrastive import MoCoV1Config
from c2fmae.core.errors import UserError
from c2fmae.core.training import CompiledParts, TrainingPlan
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.method import BranchMethod, ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.task import BranchTask
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.contrast import enqueue, queue_contrast
from c2fmae.models.heads import MLPHead


class Queue(nn.Module):
    """The teacher's outputs for the images of earlier steps, in rows of length 1."""

    keys: Tensor
    start: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(length, dim))
        self.register_buffer("start", torch.zeros((), dtype=torch.long))


class MoCoV1(BranchMethod):
    """One view finds the teacher's output for the other one among those for images of earlier steps."""

    config: MoCoV1Config
    teacher_heads: ClassVar[tuple[str, ...]] = ("projector",)
    loss_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}

    @classmethod
    def create_heads(cls, config: MoCoV1Config, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return a linear projector and the queue."""
        del patch_size
        projector = MLPHead(dim, config.out, config.out, depth=1, norm="none", bias=True)
        return {"projector": projector, "queue": Queue(config.queue_length, config.out)}

    @classmethod
    def initialise(cls, config: MoCoV1Config, model: BranchModel, generator: torch.Generator) -> None:
        """Fill the queue with random directions."""
        super().initialise(config, model, generator)
        queue = model.get_submodule("heads.queue")
        assert isinstance(queue, Queue)
        queue.keys.copy_(F.normalize(torch.randn(queue.keys.shape, generator=generator), dim=1))

    def build_task(self, plan: TrainingPlan, *, seed: int, compiled_parts: CompiledParts = "off") -> BranchTask:
        """Return the training task. Raise a `UserError` if batches do not fill the queue evenly."""
        length, size = self.config.queue_length, plan.batch_size
        if length % size:
            raise UserError(
                f"method.queue_length: expected a multiple of the batch of {size}, got {length}. Set it to "
                f"{max(length // size, 1) * size}"
            )
        return super().build_task(plan, seed=seed, compiled_parts=compiled_parts)

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's projections of the second view."""
        assert self.teacher is not None
        return {"second": self.teacher.heads["projector"](self.teacher.encode(batch.images("second"))[:, 0])}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the loss of the main view. The keys of all ranks are added up at their places in the batch."""
        latents, keys = model.encode(batch.images("main"))[:, 0], batch.targets["second"].float()
        queries, queue = model.heads["projector"](latents), model.get_submodule("heads.queue")
        assert isinstance(queue, Queue)
        loss, is_correct = queue_contrast(queries, keys, queue.keys, self.config.temperature)
        placed = keys.new_zeros(batch.total, keys.shape[1]).index_copy(0, batch.image_idx, keys)
        return ImageLosses(
            {"contrast": loss},
            {"contrast_accuracy": is_correct, "feature_spread": measure_spread(latents)},
            {"keys": placed},
        )

    def update_state(self, model: BranchModel, sums: Mapping[str, Tensor], condition: Bool[Tensor, ""]) -> None:
        """Replace the oldest keys by those of this step."""
        queue = model.get_submodule("heads.queue")
        assert isinstance(queue, Queue)
        keys, start = enqueue(queue.keys, queue.start, sums["keys"])
        queue.keys.copy_(torch.where(condition, keys, queue.keys))
        queue.start.copy_(torch.where(condition, start, queue.start))

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        return {
            "student": "sees the view main, whole",
            "teacher": "average of embeddings, encoder and projector; sees the view second, whole",
            "contrast": f"the projection of main finds the teacher's of second among {self.config.queue_length:,} of "
            f"earlier images, temperature {self.config.temperature:g}",
        }
