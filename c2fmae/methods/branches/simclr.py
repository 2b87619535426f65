"""SimCLR (Chen et al., 2020)."""

from typing import ClassVar

from torch import Tensor, nn

from c2fmae.config.contrastive import SimCLRConfig
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.method import BranchMethod, ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.contrast import nt_xent
from c2fmae.models.heads import MLPHead


class SimCLR(BranchMethod):
    """Each of two views finds the other among all views of all images of the batch. There is no teacher."""

    config: SimCLRConfig
    compares_students: ClassVar[bool] = True
    loss_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}

    @classmethod
    def create_heads(cls, config: SimCLRConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the projector."""
        del patch_size
        return {"projector": MLPHead(dim, config.hidden, config.out, depth=2, last_norm="plain")}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the mean loss of both views."""
        latents = model.encode(batch.images("main", "second"))[:, 0]
        features = self._project(model, latents)  # batch norms are over both views
        loss, is_correct = nt_xent(
            features, self.gather_students(model, features), batch.image_idx, self.config.temperature
        )
        return ImageLosses(
            {"contrast": loss.mean(dim=1)},
            {"contrast_accuracy": is_correct, "feature_spread": measure_spread(latents)},
        )

    def _project(self, model: BranchModel, latents: Tensor) -> Tensor:
        return model.heads["projector"](latents).unflatten(0, (2, -1)).transpose(0, 1)  # type: ignore[no-any-return]

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        return {
            "student": "sees views main and second, whole",
            "contrast": f"each view's projection finds that of the other view among all of the batch, temperature "
            f"{self.config.temperature:g}",
        }
