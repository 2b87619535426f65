"""CMAE (Huang et al., 2023)."""

from typing import ClassVar

from torch import Tensor, nn

from c2fmae.config.masked_branches import CMAEConfig
from c2fmae.core.masks import Masks
from c2fmae.masking.noise import RowGenerator
from c2fmae.masking.units import count_masked_units
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.method import BranchMethod, ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.unit_masks import check_units, hide_units
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.autoencoder import encode_visible
from c2fmae.models.contrast import info_nce
from c2fmae.models.decoders import DecoderLayout
from c2fmae.models.distillation import average_masked
from c2fmae.models.heads import MLPHead
from c2fmae.models.targets import NormalizedPixelTarget


class CMAE(BranchMethod):
    """The hidden patches of a view are predicted, as in MAE, and a second decoder predicts what the teacher sees.

    The mean feature of that decoder finds the teacher's mean feature of the same image, shifted and in other colours,
    among those of all images of the batch.
    """

    config: CMAEConfig
    teacher_heads: ClassVar[tuple[str, ...]] = ("projector",)
    reads_class_token: ClassVar[bool] = False
    gathered_targets: ClassVar[tuple[str, ...]] = ("target",)

    @classmethod
    def create_heads(cls, config: CMAEConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return two decoders, the layer that predicts pixels, the projector and the predictor."""
        check_units(config, patch_size)
        layout = DecoderLayout(encoder_dim=dim, granularities=("rgb",), stages={"rgb": "rgb"})
        hidden, out = config.hidden, config.out
        return {
            "decoder": config.decoder.instantiate(layout),
            "pixels": nn.Linear(config.decoder.options.dim, config.num_channels("rgb") * patch_size**2),
            "feature_decoder": config.feature_decoder.instantiate(layout),
            "features": nn.Linear(config.feature_decoder.options.dim, dim),
            "projector": MLPHead(dim, hidden, out, depth=2),
            "predictor": MLPHead(out, hidden, out, depth=2),
        }

    @staticmethod
    def draw_masks(
        config: CMAEConfig, grid: tuple[int, int], rows: range, generator: RowGenerator
    ) -> dict[str, Tensor]:
        """Hide units of patches at random, as many in every image."""
        return {"main": hide_units(config, grid, rows, generator)}

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, by name."""
        return {"rgb": 1.0, "contrast": self.config.contrast_weight}

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's projection of the mean of all patches, without the encoder's last norm."""
        assert self.teacher is not None
        latents = self.teacher.compute_latents(batch.images("target"), normed=False)
        patches = latents[:, self.teacher.encoder.num_prefix_tokens :]
        return {"target": self.teacher.heads["projector"](patches.mean(dim=1))}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the loss of hidden patches, and that of the contrast."""
        images, is_masked = batch.images("main"), batch.masks["main"]
        masks = Masks.from_mask(is_masked.unsqueeze(1), ("rgb",), num_visible=self._num_visible(is_masked.shape[1]))
        latents, grid = encode_visible(model.embeddings, model.encoder, {"rgb": images}, masks)

        pixels = model.heads["pixels"](model.heads["decoder"](latents, masks, grid)["rgb"])
        error = NormalizedPixelTarget(self.config.num_channels("rgb"), self.patch_size).error(pixels, images)

        features = model.heads["features"](model.heads["feature_decoder"](latents, masks, grid)["rgb"]).mean(dim=1)
        queries = model.heads["predictor"](model.heads["projector"](features))
        temperature = self.config.temperature
        contrast = info_nce(queries, batch.keys_of_batch["target"], batch.image_idx, temperature)
        return ImageLosses(
            {"rgb": average_masked(error, is_masked), "contrast": 2 * temperature * contrast.loss},
            {"contrast_accuracy": contrast.is_correct, "feature_spread": measure_spread(features)},
        )

    def _num_visible(self, num_patches: int) -> int:
        num_units = num_patches // self.config.mask_unit**2
        return num_patches - count_masked_units(num_units, self.config.mask_ratio) * self.config.mask_unit**2

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        config = self.config
        return {
            "student": f"sees the view main, of which a fraction of {config.mask_ratio:g} is hidden, in units of "
            f"{config.mask_unit}×{config.mask_unit} patches",
            "teacher": "average of embeddings, encoder and projector; sees the view target, whole",
            "rgb": "hidden patches of main, normalised pixels, by the decoder",
            "contrast": "the prediction from the feature decoder's mean finds the teacher's output for target among "
            f"those of the batch, temperature {config.temperature:g}, loss × {config.contrast_weight:g}",
        }
