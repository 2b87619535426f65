"""iBOT (Zhou et al., 2022)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from c2fmae.config.distilling import DistillingConfig, IBOTConfig
from c2fmae.masking.blocks import block_mask, sample_budgets
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods.branches.dino import Centre, Dino, average_logits, get_centre, move_centre, split_views
from c2fmae.methods.branches.method import ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.distillation import average_masked, distil, sharpen

NUM_BLOCKS = 20
"""Proposals of blocks; what they do not hide is hidden next to them."""


class IBOT(Dino):
    """DINO, and the student distributes hidden patches over the prototypes as the teacher, which sees them, does."""

    config: IBOTConfig  # type: ignore[assignment]
    has_mask_token: ClassVar[bool] = True

    @staticmethod
    def draw_masks(
        config: IBOTConfig, grid: tuple[int, int], rows: range, generator: RowGenerator
    ) -> dict[str, Tensor]:
        """Hide blocks of patches in each of the two large views, in some none."""
        num_patches, masks = grid[0] * grid[1], {}
        for number, name in enumerate(("main", "second")):
            budget_noise, block_noise, fill_noise = (
                generator.draw_uniform(1 + 3 * number + index, rows, width)
                for index, width in enumerate((2, NUM_BLOCKS * 4, num_patches))
            )
            budgets = sample_budgets(
                budget_noise, num_patches, mask_ratios=config.mask_ratio, chance=config.mask_chance
            )
            blocks = block_noise.unflatten(1, (NUM_BLOCKS, 4))
            masks[name] = block_mask(blocks, fill_noise, budgets, grid, min_area=(min(grid) // 3) ** 2)
        return masks

    @classmethod
    def create_heads(cls, config: DistillingConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the head, which images and patches share, and a centre for each of them."""
        heads = super().create_heads(config, dim, patch_size)
        return {**heads, "patch_centre": Centre(config.prototypes)}

    @property
    def loss_weights(self) -> dict[str, float]:  # type: ignore[override]
        """The weight of each loss, by name."""
        return {"image": 1.0, "patch": self.config.patch_weight}

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's tokens of both large views: of the image, and of all patches."""
        assert self.teacher is not None
        tokens = split_views(self.teacher.encode(batch.images("main", "second")))
        return {"image": tokens[:, :, 0], "patch": tokens[:, :, self.teacher.encoder.num_prefix_tokens :]}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the loss of images over pairs of different views, and that of hidden patches in the same view."""
        is_masked = torch.cat([batch.masks["main"], batch.masks["second"]])
        tokens = model.compute_latents(batch.images("main", "second"), is_masked=is_masked)
        image = self.compute_image_losses(model, batch, tokens[:, 0])

        logits = self.compute_teacher_logits(batch.targets["patch"])
        targets = sharpen(logits, get_centre(model, "patch_centre"), batch.numbers["patch_teacher_temperature"])
        student = model.heads["prototypes"](tokens[:, model.encoder.num_prefix_tokens :])
        errors = distil(student, targets.flatten(0, 1), self.config.temperature)
        patch_loss = average_masked(errors, is_masked).unflatten(0, (2, -1)).mean(dim=0)
        return ImageLosses(
            {**image.losses, "patch": patch_loss},
            image.values,
            {**image.sums, "patch": average_logits(logits, batch.total)},
        )

    def update_state(self, model: BranchModel, sums: Mapping[str, Tensor], condition: Bool[Tensor, ""]) -> None:
        """Move both centres towards the means of the step's logits."""
        super().update_state(model, sums, condition)
        move_centre(model, "patch_centre", sums["patch"], self.config.centre_momentum, condition)

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        low, high = self.config.mask_ratio
        return {
            **super().summarise(),
            "student": f"sees views main and second, in a fraction {self.config.mask_chance:g} of them with mask "
            f"tokens at {low:g} to {high:g} of the patches, and {self.config.views['local'].count} × local, whole",
            "patch": f"hidden patches are distributed as the teacher distributes them in the same view, loss × "
            f"{self.config.patch_weight:g}",
        }
