"""ConMIM (Yi et al., 2023)."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.config.masked_branches import ConMIMConfig
from c2fmae.core.errors import UserError
from c2fmae.core.training import CompiledParts, TrainingPlan
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.method import BranchMethod, ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.task import BranchTask
from c2fmae.methods.branches.unit_masks import check_units, hide_units
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.contrast import patch_contrast
from c2fmae.models.distillation import average_masked
from c2fmae.models.heads import MLPHead
from c2fmae.models.initialise import fill_layer_scales, rescale_residual_outputs


class ConMIM(BranchMethod):
    """Each hidden patch finds the teacher's output for the same patch among those for all patches of the image.

    The teacher sees the same crop in other colours, and whole.
    """

    config: ConMIMConfig
    teacher_heads: ClassVar[tuple[str, ...]] = ("projector",)
    reads_class_token: ClassVar[bool] = False
    has_mask_token: ClassVar[bool] = True
    loss_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}

    @classmethod
    def create_heads(cls, config: ConMIMConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the projector of tokens."""
        check_units(config, patch_size)
        projector = MLPHead(dim, config.hidden, config.out, depth=3, last_norm="plain", group=config.group)
        return {"projector": projector}

    @classmethod
    def initialise(cls, config: ConMIMConfig, model: BranchModel, generator: torch.Generator) -> None:
        """Initialise the weights so that each block adds little to the residual stream."""
        super().initialise(config, model, generator)
        rescale_residual_outputs(model.encoder.blocks)
        fill_layer_scales(model.encoder, config.layer_scale)

    @staticmethod
    def draw_masks(
        config: ConMIMConfig, grid: tuple[int, int], rows: range, generator: RowGenerator
    ) -> dict[str, Tensor]:
        """Hide units of patches at random, as many in every image."""
        return {"main": hide_units(config, grid, rows, generator)}

    def build_task(self, plan: TrainingPlan, *, seed: int, compiled_parts: CompiledParts = "off") -> BranchTask:
        """Return the training task. Raise a `UserError` if a micro-batch does not hold whole groups."""
        size, group = plan.batch_size_per_rank // plan.num_micro_batches, self.config.group
        if size % group:
            raise UserError(
                f"method.group: expected a divisor of the {size} images of a micro-batch, got {group}. Lower it, or "
                "set training.batch_size or training.micro_batch higher"
            )
        return super().build_task(plan, seed=seed, compiled_parts=compiled_parts)

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's projections of all patches."""
        assert self.teacher is not None
        return {"patch": _project_patches(self.teacher, self.teacher.encode(batch.images("target")))}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the mean loss of hidden patches."""
        is_masked = batch.masks["main"]
        tokens = model.compute_latents(batch.images("main"), is_masked=is_masked)
        student = _project_patches(model, tokens)
        contrast = patch_contrast(student, batch.targets["patch"], self.config.temperature)
        features = tokens[:, model.encoder.num_prefix_tokens :].mean(dim=1)
        return ImageLosses(
            {"contrast": average_masked(contrast.loss, is_masked)},
            {
                "contrast_accuracy": average_masked(contrast.is_correct.float(), is_masked),
                "feature_spread": measure_spread(features),
            },
        )

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        config = self.config
        return {
            "student": f"sees the view main, with mask tokens at a fraction of {config.mask_ratio:g}, in units of "
            f"{config.mask_unit}×{config.mask_unit} patches",
            "teacher": "average of embeddings, encoder and projector; sees the view target, the same crop, whole",
            "contrast": "each hidden patch's projection finds the teacher's of the same patch among those of the "
            f"image, temperature {config.temperature:g}",
        }


def _project_patches(model: BranchModel, tokens: Float[Tensor, "batch latent dim"]) -> Float[Tensor, "batch patch out"]:
    """Return the projections of patches; class tokens take part in the statistics of the projector's norms."""
    return model.heads["projector"](tokens)[:, model.encoder.num_prefix_tokens :]  # type: ignore[no-any-return]
