"""MST (Li et al., 2021)."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from c2fmae.config.distilling import DistillingConfig, MSTConfig
from c2fmae.masking.attention_guided import low_attention_mask
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods.branches.dino import Dino, split_views
from c2fmae.methods.branches.method import ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models.convolution import ConvModule
from c2fmae.models.targets import AbsoluteErrorTarget


class Restorer(nn.Module):
    """Convolutions over the grid of patches, which predict the values of each patch."""

    def __init__(self, dim: int, width: int, num_values: int) -> None:
        super().__init__()
        # The paper has batch norms, whose statistics depend on how a step's images are divided.
        self.layers = nn.Sequential(
            ConvModule(dim, width, 3, "layer"), ConvModule(width, width, 3, "layer"), nn.Conv2d(width, num_values, 1)
        )

    def forward(
        self, patches: Float[Tensor, "batch patch dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patch value"]:
        """Return the predicted values of all patches."""
        return self.layers(patches.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class MST(Dino):
    """DINO, but patches that the teacher attends to least are hidden at random, and the student restores all pixels."""

    config: MSTConfig  # type: ignore[assignment]
    has_mask_token: ClassVar[bool] = True

    @classmethod
    def create_heads(cls, config: DistillingConfig, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the head of prototypes with its centre, and the restorer."""
        assert isinstance(config, MSTConfig)
        heads = super().create_heads(config, dim, patch_size)
        return {**heads, "restorer": Restorer(dim, config.restorer_width, config.num_channels("rgb") * patch_size**2)}

    @staticmethod
    def draw_masks(config: MSTConfig, grid: tuple[int, int], rows: range, generator: RowGenerator) -> dict[str, Tensor]:
        """Draw the noise of the masks of both large views, which depend on the teacher too."""
        del config
        num_patches = grid[0] * grid[1]
        return {"noise": generator.draw_uniform(1, rows, 2 * num_patches).unflatten(1, (2, num_patches))}

    @property
    def loss_weights(self) -> dict[str, float]:  # type: ignore[override]
        """The weight of each loss, by name."""
        return {"image": 1.0, "rgb": self.config.pixel_weight}

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's class tokens of both large views, and their attention in the last block."""
        assert self.teacher is not None
        tokens, attention = self.teacher.forward_with_cls_attention(batch.images("main", "second"))
        return {"image": split_views(tokens[:, 0]), "attention": split_views(attention.mean(dim=1))}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the loss of images over pairs of different views, and that of all pixels of the large views."""
        images = batch.images("main", "second")
        tokens = model.compute_latents(images, is_masked=self.choose_masks(batch))
        image = self.compute_image_losses(model, batch, tokens[:, 0])

        grid = model.embeddings.common_grid({"rgb": images})
        pixels = model.heads["restorer"](tokens[:, model.encoder.num_prefix_tokens :], grid)
        errors = AbsoluteErrorTarget(self.config.num_channels("rgb"), self.patch_size).error(pixels, images)
        pixel_loss = errors.mean(dim=1).unflatten(0, (2, -1)).mean(dim=0)
        return image._replace(losses={**image.losses, "rgb": pixel_loss})

    def choose_masks(self, batch: ViewBatch) -> Bool[Tensor, "views_and_batch patch"]:
        """Return the masks of both large views, of which those of all first views come first."""
        attention, noise = (
            outputs.transpose(0, 1).flatten(0, 1) for outputs in (batch.targets["attention"], batch.masks["noise"])
        )
        num_candidates = torch.full((len(noise),), int(self.config.low_fraction * noise.shape[1]), device=noise.device)
        return low_attention_mask(attention, noise, num_candidates=num_candidates, chance=self.config.mask_chance)

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        config = self.config
        return {
            **super().summarise(),
            "student": f"sees views main and second, with mask tokens at {config.mask_chance:.0%} of the "
            f"{config.low_fraction:.0%} of the patches that the teacher's class token attends to least, and "
            f"{config.views['local'].count} × local, whole",
            "rgb": f"all pixels of main and second by convolutions, absolute error, loss × {config.pixel_weight:g}",
        }
