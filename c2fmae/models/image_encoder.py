"""The encoder of the two-branch methods: of whole images, or of images with mask tokens."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers.attention import Attention
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.models.attention import compute_attention_weights
from c2fmae.models.autoencoder import list_vit_layers
from c2fmae.models.embeddings import Embeddings
from c2fmae.models.encoder import Encoder


class ImageEncoder(nn.Module):
    """A plain ViT of images, whose parts have the names that they have in `MultiGranularAutoencoder`.

    Images may have any size that the patch size divides. `freezes_patch_projection` leaves the projection of patches as
    it was initialised (MoCo v3): it is saved and exported, but not trained.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        encoder: Encoder,
        *,
        has_mask_token: bool = False,
        freezes_patch_projection: bool = False,
    ) -> None:
        super().__init__()
        if tuple(embeddings) != ("rgb",):
            raise ValueError(f"embeddings: expected rgb alone, got {', '.join(embeddings)}")
        self.embeddings = embeddings
        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.zeros(encoder.dim)) if has_mask_token else None
        if freezes_patch_projection:
            embeddings.requires_grad_(False)

    def compute_latents(
        self,
        images: Float[Tensor, "batch channels height width"],
        *,
        is_masked: Bool[Tensor, "batch patch"] | None = None,
        normed: bool = True,
    ) -> Float[Tensor, "batch latent dim"]:
        """Return the latents of the class and register tokens and of all patches, given standardised images.

        With `is_masked`, the mask token takes the place of hidden patches, which have positions like the others.
        Without `normed`, the last norm is left out. `encode_visible` encodes visible patches alone.
        """
        tokens = self._embed(images, is_masked)
        if normed:
            return self.encoder(tokens)  # type: ignore[no-any-return]
        return self.encoder.get_intermediate_layers(tokens, [len(self.encoder.blocks)], normed=False)[0]

    def forward_with_cls_attention(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch latent dim"], Float[Tensor, "batch head patch"]]:
        """Return the latents of images, and how much the class token attends to each patch in the last block.

        The attention to the class and register tokens is left out, so that it adds up to less than 1.
        """
        depth = len(self.encoder.blocks)
        last: Any = self.encoder.blocks[-1]
        if self.encoder.cls_token is None or type(last.attn) is not Attention:
            raise UserError("encoder: the attention of this ViT cannot be read. Use one such as vit_base_patch16_224")
        tokens = self._embed(images, None)
        before, latents = self.encoder.get_intermediate_layers(tokens, [depth - 1, depth])
        weights = compute_attention_weights(last.attn, last.norm1(before), queries=slice(0, 1))
        return latents, weights[:, :, 0, self.encoder.num_prefix_tokens :]

    def encode(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent dim"]:
        """Return the latents of images with all patches visible, as timm's `forward_features` does."""
        return self.compute_latents(images)

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embeddings and tokens, then those of each block of the encoder."""
        return list_vit_layers(self.embeddings, self.encoder)

    def sharding_units(self) -> list[nn.Module]:
        """Return the encoder's blocks."""
        return [*self.encoder.blocks]

    def _embed(self, images: Tensor, is_masked: Tensor | None) -> Tensor:
        """Return the tokens of patches, with positions."""
        grid = self.embeddings.common_grid({"rgb": images})
        batch, num_patches = len(images), grid[0] * grid[1]
        patch_idx = torch.arange(batch * num_patches, device=images.device)
        tokens = self.embeddings["rgb"](images, patch_idx).unflatten(0, (batch, num_patches))
        if is_masked is not None:
            if self.mask_token is None:
                raise ValueError("is_masked: this encoder has no mask token. Build it with has_mask_token=True")
            if is_masked.shape != tokens.shape[:2]:
                got = "×".join(map(str, is_masked.shape))
                raise ValueError(f"is_masked: expected {batch}×{num_patches} (batch×patches), got {got}")
            tokens = torch.where(is_masked.unsqueeze(2), self.mask_token, tokens)
        return tokens + self.encoder.positions(grid, images.device)  # type: ignore[no-any-return]
