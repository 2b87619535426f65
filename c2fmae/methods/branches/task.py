"""The training task of two-branch methods."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.loop import StepLoss
from c2fmae.core.ramps import compute_value
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingPlan
from c2fmae.methods.branches.chunks import compute_in_chunks
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch, ViewPreparer

if TYPE_CHECKING:
    from c2fmae.methods.branches.method import BranchMethod


@dataclass(frozen=True)
class BranchTask:
    """The steps of a two-branch method. The teacher sees the batch first, then the student's micro-batches follow."""

    method: "BranchMethod"
    plan: TrainingPlan
    seed: int

    @property
    def preparer(self) -> ViewPreparer:
        """The part of the task that data workers do."""
        return self.method.create_preparer(self.seed)

    def split(
        self,
        batch: SceneBatch | Sequence[ViewBatch],
        *,
        num_micro_batches: int,
        step: int,
        progress: float,
        world: World,
    ) -> list[ViewBatch]:
        """Return the micro-batches on the device with standardised images and the outputs of the teacher."""
        if isinstance(batch, SceneBatch):
            batch = self.preparer.prepare(
                batch, num_micro_batches=num_micro_batches, step=step, progress=progress, world=world
            )
        numbers = {
            name: compute_value(number, step, self.plan)
            for name, number in self.method.config.changing_numbers().items()
        }
        batches = [
            replace(self.method.standardise(micro_batch.to(world.device)), numbers=numbers) for micro_batch in batch
        ]
        return self.method.add_targets(batches)

    def compute_counts(self, micro_batch: ViewBatch) -> dict[str, Tensor]:
        """Return the number of images, which all losses are divided by."""
        return {"images": torch.tensor(len(micro_batch), device=micro_batch.views["main"].device)}

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> dict[str, float]:
        """Return nothing: the number of images is always the same."""
        del counts, progress
        return {}

    def compute_losses(self, model: nn.Module, micro_batch: ViewBatch, counts: Mapping[str, Tensor]) -> StepLoss:
        """Return the share of a micro-batch in the loss of the global batch."""
        del counts
        return model(partial(self._compute_step_loss, micro_batch))  # type: ignore[no-any-return]

    def _compute_step_loss(self, micro_batch: ViewBatch, model: BranchModel) -> StepLoss:
        num_chunks = self.plan.num_micro_batches if self.method.compares_images else 1
        with compute_in_chunks(model, num_chunks):
            return self.method.average(self.method.compute_losses(model, micro_batch), micro_batch.total)

    def compute_sample_losses(self, model: nn.Module, micro_batch: ViewBatch) -> dict[str, Tensor]:
        """Return the losses of each image, as they are in its batch."""
        return model(partial(self.method.compute_losses, batch=micro_batch)).losses  # type: ignore[no-any-return]

    def sample_keys(self, micro_batch: ViewBatch) -> Sequence[str]:
        """Return the keys of the images."""
        return micro_batch.keys

    def teacher_momentum(self, step: int) -> float:
        """Return the weight of the teacher in its update after a step."""
        return compute_value(self.method.config.momentum, step, self.plan)

    def held_parameters(self, step: int) -> Iterable[nn.Parameter]:
        """Return the parameters that a step leaves as they are."""
        return self.method.held_parameters(step, self.plan)

    @torch.no_grad()
    def update_state(self, model: nn.Module, sums: Mapping[str, Tensor], condition: Bool[Tensor, ""]) -> None:
        """Update the buffers of the model after a step, if the condition holds."""
        assert isinstance(model, BranchModel)
        self.method.update_state(model, sums, condition)
