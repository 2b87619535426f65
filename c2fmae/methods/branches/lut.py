"""LUT (Kim et al., 2024)."""

from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from c2fmae.config.masked_branches import LUTConfig
from c2fmae.core.masks import Masks
from c2fmae.masking.noise import RowGenerator
from c2fmae.masking.selection import random_mask
from c2fmae.masking.units import count_masked_units
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.method import BranchMethod, ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.unit_masks import check_mask_ratio
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.autoencoder import encode_visible
from c2fmae.models.decoders import DecoderLayout
from c2fmae.models.distillation import average_masked, cosine_loss
from c2fmae.models.heads import MLPHead
from c2fmae.models.targets import NormalizedPixelTarget


class LUT(BranchMethod):
    """The hidden patches of a view are predicted, as in MAE, and the visible ones predict what the teacher sees.

    Two views have different visible patches. The mean of each view's predicts the teacher's mean of all patches of the
    other view.
    """

    config: LUTConfig
    teacher_heads: ClassVar[tuple[str, ...]] = ("projector",)
    reads_class_token: ClassVar[bool] = False

    @classmethod
    def create_heads(cls, config: LUTConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the decoder, the layer that predicts pixels, the projector and the predictor."""
        rows, columns = (side // patch_size for side in config.image_size)
        check_mask_ratio(config.mask_ratio, rows * columns)
        layout = DecoderLayout(encoder_dim=dim, granularities=("rgb",), stages={"rgb": "rgb"})
        hidden, norm = config.hidden, config.head_norm
        return {
            "decoder": config.decoder.instantiate(layout),
            "pixels": nn.Linear(config.decoder.options.dim, config.num_channels("rgb") * patch_size**2),
            "projector": MLPHead(dim, hidden, dim, depth=2, norm=norm),
            "predictor": MLPHead(dim, hidden, dim, depth=2, norm=norm),
        }

    @staticmethod
    def draw_masks(config: LUTConfig, grid: tuple[int, int], rows: range, generator: RowGenerator) -> dict[str, Tensor]:
        """Show the first patches of a random order in the main view, and the next ones in the second."""
        num_patches = grid[0] * grid[1]
        noise = generator.draw_uniform(1, rows, num_patches)
        num_masked = count_masked_units(num_patches, config.mask_ratio)
        num_visible = num_patches - num_masked
        main, both = (
            random_mask(noise, torch.full((len(rows),), count)) for count in (num_masked, num_masked - num_visible)
        )
        return {"main": main, "second": ~main | both}

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, by name."""
        return {"rgb": 1.0, "context": self.config.context_weight}

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's projections of the mean of all patches of each view."""
        assert self.teacher is not None
        latents = self.teacher.encode(batch.images("main", "second"))
        means = latents[:, self.teacher.encoder.num_prefix_tokens :].mean(dim=1)
        main, second = (self.teacher.heads["projector"](mean) for mean in means.chunk(2))
        return {"main": main, "second": second}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the loss of the main view's hidden patches, and that of the predictions of the teacher's features."""
        images, is_masked = batch.images("main"), batch.masks["main"]
        both = _make_masks(torch.cat([is_masked, batch.masks["second"]]), self.config.mask_ratio)
        latents, grid = encode_visible(model.embeddings, model.encoder, {"rgb": batch.images("main", "second")}, both)
        masks = _make_masks(is_masked, self.config.mask_ratio)
        decoded = model.heads["decoder"](latents[: len(batch)], masks, grid)["rgb"]
        target = NormalizedPixelTarget(self.config.num_channels("rgb"), self.patch_size)
        error = target.error(model.heads["pixels"](decoded), images)

        means = latents[:, model.encoder.num_prefix_tokens :].mean(dim=1)
        main, second = (model.heads["predictor"](model.heads["projector"](mean)) for mean in means.chunk(2))
        context = (cosine_loss(main, batch.targets["second"]) + cosine_loss(second, batch.targets["main"])) / 2
        return ImageLosses(
            {"rgb": average_masked(error, is_masked), "context": context}, {"feature_spread": measure_spread(means)}
        )

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        config = self.config
        return {
            "student": f"sees views main and second, each with a fraction of {config.mask_ratio:g} hidden; no patch is "
            "visible in both",
            "teacher": "average of embeddings, encoder and projector; sees views main and second, whole",
            "rgb": "hidden patches of main, normalised pixels, by the decoder",
            "context": "the prediction from the mean of each view's visible patches is compared with the teacher's "
            f"output for the other view, 2 - 2 cos, loss × {config.context_weight:g}",
        }


def _make_masks(is_masked: Bool[Tensor, "batch patch"], mask_ratio: float) -> Masks:
    num_patches = is_masked.shape[1]
    num_visible = num_patches - count_masked_units(num_patches, mask_ratio)
    return Masks.from_mask(is_masked.unsqueeze(1), ("rgb",), num_visible=num_visible)
