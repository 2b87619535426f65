"""The pre-training model: embeddings, encoder, decoder and prediction heads."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from c2fmae.core.masks import Masks
from c2fmae.models.embeddings import Embeddings
from c2fmae.models.encoder import Encoder

Predictions = dict[str, Float[Tensor, "batch patch value"]]
T = TypeVar("T")


class PredictionHead(nn.Linear):
    """A linear layer from the features of a decoder stage to predictions."""

    def __init__(self, stage: str, dim: int, size: int) -> None:
        super().__init__(dim, size)
        self.stage = stage


class MultiGranularAutoencoder(nn.Module):
    """One encoder for the visible patches of all granularities, a decoder, and a head for each prediction.

    It takes maps and masks, and returns predictions. Masks are sampled, and losses defined, outside of the model. If
    the decoder has `needs_mask_tokens`, the encoder reads all patches, with a mask token in the place of hidden ones.
    """

    def __init__(
        self, embeddings: Embeddings, encoder: Encoder, decoder: nn.Module, heads: Mapping[str, PredictionHead]
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder
        has_mask_token = getattr(decoder, "needs_mask_tokens", False)
        self.mask_token = nn.Parameter(torch.zeros(encoder.dim)) if has_mask_token else None
        self.decoder = decoder
        self.heads = nn.ModuleDict(heads)

    def forward(
        self,
        maps: Mapping[str, Shaped[Tensor, "batch *map"]],
        masks: Masks,
        compute_loss: Callable[[Predictions], T] | None = None,
    ) -> Predictions | T:
        """Return each head's predictions, given standardised images and id maps.

        They are predictions of all patches, or of those that the masks list to decode.

        With `compute_loss`, return its result for the predictions. So the loss is a part of the model's call: of its
        graph if the model is compiled, and of the pass of DDP or FSDP.
        """
        if masks.granularities != tuple(self.embeddings):
            expected = ", ".join(self.embeddings)
            raise ValueError(f"masks: expected granularities {expected}, got {', '.join(masks.granularities)}")
        if self.mask_token is None:
            latent, grid = encode_visible(self.embeddings, self.encoder, maps, masks)
        else:
            latent, grid = encode_masked(self.embeddings, self.encoder, self.mask_token, maps, masks)
        features = self.decoder(latent, masks, grid)
        predictions = {name: head(features[head.stage]) for name, head in self.heads.items()}
        return predictions if compute_loss is None else compute_loss(predictions)

    def encode(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent dim"]:
        """Return the latents of images with all patches visible, as timm's `forward_features` does."""
        if "rgb" not in self.embeddings:
            raise ValueError(f"this model has no rgb embedding: its granularities are {', '.join(self.embeddings)}")
        rows, columns = self.embeddings.common_grid({"rgb": images})
        masks = Masks.from_visible_granularities(
            ["rgb"], ["rgb"], batch=len(images), num_patches=rows * columns, device=images.device
        )
        return encode_visible(self.embeddings, self.encoder, {"rgb": images}, masks)[0]

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embeddings and tokens, then those of each block of the encoder."""
        return list_vit_layers(self.embeddings, self.encoder)

    def sharding_units(self) -> list[nn.Module]:
        """Return the encoder's blocks, and those that the decoder declares in its attribute or property `blocks`."""
        return [*self.encoder.blocks, *getattr(self.decoder, "blocks", ())]


def list_vit_layers(embeddings: Embeddings, encoder: Encoder) -> list[list[nn.Parameter]]:
    """Return the parameters of the embeddings and tokens, then those of each block; norms after these are left out."""
    tokens = [token for token in (encoder.cls_token, encoder.reg_token) if token is not None]
    stem = [*embeddings.parameters(), *tokens, *encoder.norm_pre.parameters()]
    return [stem, *([*block.parameters()] for block in encoder.blocks)]


def encode_visible(
    embeddings: Embeddings, encoder: Encoder, maps: Mapping[str, Shaped[Tensor, "batch *map"]], masks: Masks
) -> tuple[Float[Tensor, "batch latent dim"], tuple[int, int]]:
    """Return the latents of the visible patches, and the rows and columns of patches."""
    tokens, grid = embed_visible(embeddings, encoder, maps, masks)
    return encoder(tokens), grid


def encode_masked(
    embeddings: Embeddings,
    encoder: Encoder,
    mask_token: Float[Tensor, " dim"],
    maps: Mapping[str, Shaped[Tensor, "batch *map"]],
    masks: Masks,
) -> tuple[Float[Tensor, "batch latent dim"], tuple[int, int]]:
    """Return the latents of all patches, with the mask token in the place of hidden ones, and the grid of patches."""
    visible, grid = embed_patches(embeddings, maps, masks)
    batch, granularities, num_patches = masks.is_masked.shape
    tokens = mask_token.to(visible.dtype).expand(batch, granularities * num_patches, -1)
    tokens = tokens.scatter(1, masks.visible_idx.unsqueeze(2).expand(-1, -1, visible.shape[2]), visible)
    positions = encoder.positions(grid, tokens.device)
    return encoder(tokens + positions.repeat(granularities, 1)), grid


def embed_visible(
    embeddings: Embeddings, encoder: Encoder, maps: Mapping[str, Shaped[Tensor, "batch *map"]], masks: Masks
) -> tuple[Float[Tensor, "batch visible dim"], tuple[int, int]]:
    """Return the tokens of the visible patches with positions added, and the rows and columns of patches."""
    tokens, grid = embed_patches(embeddings, maps, masks)
    positions = encoder.positions(grid, tokens.device)
    return tokens + positions[masks.visible_idx % len(positions)], grid


def embed_patches(
    embeddings: Embeddings, maps: Mapping[str, Shaped[Tensor, "batch *map"]], masks: Masks
) -> tuple[Float[Tensor, "batch visible dim"], tuple[int, int]]:
    """Return the tokens of the visible patches without positions, and the rows and columns of patches."""
    grid = embeddings.common_grid({name: maps[name] for name in masks.granularities})
    batch, num_patches = len(next(iter(maps.values()))), grid[0] * grid[1]
    if (len(masks.is_masked), masks.is_masked.shape[2]) != (batch, num_patches):
        got = f"{len(masks.is_masked)} × {masks.is_masked.shape[2]}"
        raise ValueError(f"masks: expected {batch} × {num_patches} patches (batch × patches), got {got}")
    return embeddings(maps, masks), grid
