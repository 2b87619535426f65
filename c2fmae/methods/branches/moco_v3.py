"""MoCo v3 (Chen et al., 2021)."""

from typing import ClassVar

from torch import Tensor, nn

from c2fmae.config.contrastive import MoCoV3Config
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.method import BranchMethod, ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.contrast import info_nce
from c2fmae.models.heads import MLPHead


class MoCoV3(BranchMethod):
    """Each of two views finds the teacher's output for the other one among those for all images of the batch.

    The projection of patches stays random, which makes the training of ViTs stable.
    """

    config: MoCoV3Config
    teacher_heads: ClassVar[tuple[str, ...]] = ("projector",)
    gathered_targets: ClassVar[tuple[str, ...]] = ("main", "second")
    freezes_patch_projection: ClassVar[bool] = True
    loss_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}

    @classmethod
    def create_heads(cls, config: MoCoV3Config, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the projector and the predictor, which the teacher does not have."""
        del patch_size
        hidden, out = config.hidden, config.out
        return {
            "projector": MLPHead(dim, hidden, out, depth=3, last_norm="plain"),
            "predictor": MLPHead(out, hidden, out, depth=2, last_norm="plain"),
        }

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's projections of both views."""
        assert self.teacher is not None
        latents = self.teacher.encode(batch.images("main", "second"))[:, 0]
        main, second = (self.teacher.heads["projector"](latent) for latent in latents.chunk(2))
        return {"main": main, "second": second}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the sum of the losses of both directions."""
        latents = model.encode(batch.images("main", "second"))[:, 0]
        main, second = (model.heads["predictor"](model.heads["projector"](latent)) for latent in latents.chunk(2))
        temperature, keys = self.config.temperature, batch.keys_of_batch
        forward = info_nce(main, keys["second"], batch.image_idx, temperature)
        backward = info_nce(second, keys["main"], batch.image_idx, temperature)
        return ImageLosses(
            {"contrast": 2 * temperature * (forward.loss + backward.loss)},
            {"contrast_accuracy": forward.is_correct, "feature_spread": measure_spread(latents)},
        )

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        return {
            "student": "sees views main and second, whole; its projection of patches is not trained",
            "teacher": "average of embeddings, encoder and projector; sees views main and second, whole",
            "contrast": "each view's prediction finds the teacher's output for the other view among those of the "
            f"batch, temperature {self.config.temperature:g}",
        }
