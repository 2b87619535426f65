"""The input of a decoder: visible tokens from the encoder and mask tokens, in the order of all patches."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from c2fmae.core.masks import Masks
from c2fmae.models.patches import spread_patches
from c2fmae.models.positions import cached_sincos_positions
from c2fmae.models.residual_stream import ResidualStream


class DecoderState(NamedTuple):
    """All tokens of a batch, granularity by granularity, and the prefix tokens."""

    prefix: Float[Tensor, "batch prefix dim"]
    """Class and register tokens, which belong to no patch."""
    tokens: Float[Tensor, "batch token dim"]
    visible_idx: Int[Tensor, "batch visible"]
    num_patches: int
    decoded_idx: Int[Tensor, "batch granularity decoded"] | None = None
    """Indices of the patches of each granularity that are decoded; None means all patches."""

    def tokens_of(self, granularity: int) -> Float[Tensor, "batch patch dim"]:
        """Return one granularity's tokens."""
        return self.tokens.narrow(1, granularity * self.num_patches, self.num_patches)

    def select_decoded(
        self, features: Float[Tensor, "batch patch dim"], granularity: int
    ) -> Float[Tensor, "batch decoded dim"]:
        """Return the features of those of a granularity's patches that are decoded."""
        if self.decoded_idx is None:
            return features
        return features.gather(1, _gather_index(self.decoded_idx[:, granularity], features))

    def decoded_tokens_of(self, granularity: int) -> Float[Tensor, "batch decoded dim"]:
        """Return the tokens of those of a granularity's patches that are decoded."""
        return self.select_decoded(self.tokens_of(granularity), granularity)

    def visible_tokens(self) -> Float[Tensor, "batch visible dim"]:
        """Return the tokens of the visible patches."""
        return self.tokens.gather(1, _gather_index(self.visible_idx, self.tokens))

    def add_features(
        self, features: Float[Tensor, "batch decoded dim"], granularity: int
    ) -> Float[Tensor, "batch token dim"]:
        """Return the tokens with a stage's features added to the tokens of the same patches."""
        decoded_idx = None if self.decoded_idx is None else self.decoded_idx[:, granularity]
        features = spread_patches(features, decoded_idx, self.num_patches)
        before = granularity * self.num_patches
        after = self.tokens.shape[1] - before - self.num_patches
        return self.tokens + F.pad(features, (0, 0, before, after))


class DecoderEntry(ResidualStream):
    """Projection of the encoder's latents to a decoder's tokens, with mask tokens for hidden patches."""

    def __init__(self, encoder_dim: int, dim: int, num_granularities: int) -> None:
        super().__init__()
        self.project = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        # With a single granularity its embedding would only be a second bias.
        self.granularity = nn.Parameter(torch.zeros(num_granularities, 1, dim)) if num_granularities > 1 else None

    def forward(self, latent: Float[Tensor, "batch latent width"], masks: Masks, grid: tuple[int, int]) -> DecoderState:
        """Scatter latents to their patches, fill up with mask tokens, and add positions and granularity embeddings.

        Raise a `ValueError` if latents, masks and grid do not fit.
        """
        self._check_shapes(latent, masks, grid)
        mask_token = self.begin_stream(self.mask_token)
        x = self.project(latent).to(mask_token.dtype)
        prefix, visible = x.split([x.shape[1] - masks.visible_idx.shape[1], masks.visible_idx.shape[1]], dim=1)
        batch, granularities, num_patches = masks.is_masked.shape
        tokens = mask_token.expand(batch, granularities * num_patches, -1)
        tokens = tokens.scatter(1, _gather_index(masks.visible_idx, visible), visible)
        positions = cached_sincos_positions(grid, x.shape[2], device=x.device)
        offsets = positions if self.granularity is None else (positions + self.granularity).flatten(0, 1)
        tokens = tokens + offsets.to(x.dtype)
        return DecoderState(prefix, tokens, masks.visible_idx, num_patches, masks.decoded_idx)

    def _check_shapes(self, latent: Tensor, masks: Masks, grid: tuple[int, int]) -> None:
        num_granularities = 1 if self.granularity is None else len(self.granularity)
        batch, num_masked, num_patches = masks.is_masked.shape
        if num_masked != num_granularities:
            raise ValueError(
                f"masks: expected {num_granularities} granularities, those of the decoder, got {num_masked}"
            )
        if grid[0] * grid[1] != num_patches:
            raise ValueError(f"grid: expected rows × columns = {num_patches}, the patches of the masks, got {grid}")
        num_visible, width = masks.visible_idx.shape[1], self.project.in_features
        if latent.ndim != 3 or latent.shape[::2] != (batch, width) or latent.shape[1] < num_visible:
            raise ValueError(
                f"latent: expected [{batch}, {num_visible} or more, {width}] (batch, class and visible tokens, width of"
                f" the encoder), got {list(latent.shape)}"
            )


def _gather_index(token_idx: Tensor, tokens: Tensor) -> Tensor:
    return token_idx.unsqueeze(2).expand(-1, -1, tokens.shape[2])
