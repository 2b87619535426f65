"""DINO (Caron et al., 2021)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from c2fmae.config.distilling import DinoConfig, DistillingConfig
from c2fmae.core.training import TrainingPlan
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.method import BranchMethod, ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.distillation import compute_entropy, distil_views, sharpen, update_centre
from c2fmae.models.heads import PrototypeHead
from c2fmae.models.initialise import initialise, initialise_heads


class Centre(nn.Module):
    """The average of a teacher's logits over earlier steps."""

    value: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(prototypes))


class Dino(BranchMethod):
    """The student distributes every view over prototypes as the teacher distributes another, large view."""

    config: DinoConfig
    teacher_heads: ClassVar[tuple[str, ...]] = ("prototypes",)
    loss_weights: ClassVar[dict[str, float]] = {"image": 1.0}

    @classmethod
    def create_heads(cls, config: DistillingConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the head of prototypes, and the centre of the teacher's logits."""
        del patch_size
        head = PrototypeHead(dim, hidden=config.hidden, bottleneck=config.bottleneck, prototypes=config.prototypes)
        return {"prototypes": head, "image_centre": Centre(config.prototypes)}

    @classmethod
    def initialise(cls, config: DistillingConfig, model: BranchModel, generator: torch.Generator) -> None:
        """Initialise the encoder as in masked autoencoding, and the head as in DINO."""
        del config
        initialise(model, generator, split_qkv=False)
        initialise_heads(model.heads, generator)

    def compute_targets(self, batch: ViewBatch) -> dict[str, Float[Tensor, "batch view dim"]]:
        """Return the teacher's class tokens of both large views."""
        assert self.teacher is not None
        return {"image": split_views(self.teacher.encode(batch.images("main", "second"))[:, 0])}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the loss of images."""
        return self.compute_image_losses(model, batch, model.encode(batch.images("main", "second"))[:, 0])

    def compute_image_losses(
        self, model: BranchModel, batch: ViewBatch, latents: Float[Tensor, "views_and_batch dim"]
    ) -> ImageLosses:
        """Return the mean loss over all pairs of different views, given the student's class tokens of large views."""
        logits = self.compute_teacher_logits(batch.targets["image"])
        targets = sharpen(logits, get_centre(model, "image_centre"), batch.numbers["teacher_temperature"])
        student = model.heads["prototypes"](torch.cat([latents, model.encode(batch.images("local"))[:, 0]]))
        loss = distil_views(student.unflatten(0, (-1, len(batch))), targets, self.config.temperature)
        return ImageLosses(
            {"image": loss}, measure_collapse(targets, latents), {"image": average_logits(logits, batch.total)}
        )

    @torch.no_grad()
    def compute_teacher_logits(
        self, latents: Float[Tensor, "batch view *patch dim"]
    ) -> Float[Tensor, "view batch *patch prototype"]:
        """Return the teacher's logits, here and not among the targets: of all micro-batches they need much memory."""
        assert self.teacher is not None
        return self.teacher.heads["prototypes"](latents.transpose(0, 1))  # type: ignore[no-any-return]

    def update_state(self, model: BranchModel, sums: Mapping[str, Tensor], condition: Bool[Tensor, ""]) -> None:
        """Move the centre towards the mean of the step's logits."""
        move_centre(model, "image_centre", sums["image"], self.config.centre_momentum, condition)

    def held_parameters(self, step: int, plan: TrainingPlan) -> Iterable[nn.Parameter]:
        """Return the prototypes in the first epochs."""
        is_held = step < self.config.held_epochs * plan.steps_per_epoch
        return self.model.get_submodule("heads.prototypes.prototypes").parameters() if is_held else ()

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        local = self.config.views["local"]
        return {
            "student": f"sees views main and second, and {local.count} × local, all whole",
            "teacher": "average of embeddings, encoder and prototypes; sees main and second, whole",
            "image": f"each view is distributed over {self.config.prototypes:,} prototypes as the teacher distributes "
            "another view, by their class tokens",
        }


def split_views(outputs: Float[Tensor, "views_and_batch ..."]) -> Float[Tensor, "batch view ..."]:
    """Return the outputs for the two large views of each image."""
    return outputs.unflatten(0, (2, -1)).transpose(0, 1)  # type: ignore[no-any-return]


def average_logits(logits: Float[Tensor, "view batch *patch prototype"], total: int) -> Float[Tensor, " prototype"]:
    """Return the share of a micro-batch in the mean of a global batch of `total` images, at least in float32."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.flatten(0, -2).mean(dim=0, dtype=dtype) * (logits.shape[1] / total)


def get_centre(model: BranchModel, name: str) -> Float[Tensor, " prototype"]:
    """Return a centre of the teacher's logits."""
    centre = model.get_submodule(f"heads.{name}")
    assert isinstance(centre, Centre)
    return centre.value


def move_centre(model: BranchModel, name: str, mean: Tensor, momentum: float, condition: Bool[Tensor, ""]) -> None:
    """Move a centre towards the mean of a step's logits, if the condition holds."""
    centre = get_centre(model, name)
    centre.copy_(torch.where(condition, update_centre(centre, mean, momentum), centre))


def measure_collapse(
    targets: Float[Tensor, "view batch prototype"], latents: Float[Tensor, "views_and_batch dim"]
) -> dict[str, Tensor]:
    """Return the teacher's entropy, as a fraction of that of equal probabilities, and the spread of the features."""
    entropy = compute_entropy(targets) / torch.tensor(float(targets.shape[-1])).log()
    return {"teacher_entropy": entropy, "feature_spread": measure_spread(latents)}
