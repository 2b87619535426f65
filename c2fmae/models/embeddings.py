"""Embeddings from patches to tokens: hidden patches are neither projected nor copied."""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer, Shaped
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.masks import GranularityMembers, Masks
from c2fmae.models.patches import compute_grid, gather_patches, label_stride


class ImageEmbedding(nn.Module):
    """Patch embedding of images and continuous maps, with the weights of timm's `PatchEmbed`."""

    def __init__(self, patch_embed: PatchEmbed) -> None:
        super().__init__()
        self.patch = patch_embed.patch_size[0]
        self.proj = patch_embed.proj
        self.norm = patch_embed.norm

    def forward(
        self, maps: Float[Tensor, "batch channels height width"], patch_idx: Int[Tensor, " selected"]
    ) -> Float[Tensor, "selected dim"]:
        """Return the tokens of these patches, which are indexed through the whole batch."""
        pixels = gather_patches(maps, self.patch, patch_idx).flatten(1)
        return self.norm(F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias))  # type: ignore[no-any-return]


class IdEmbedding(nn.Module):
    """Patch embedding of id maps: an embedding of each cell's class, then a projection of all cells of a patch."""

    def __init__(self, num_classes: int, dim: int, *, patch: int, class_dim: int = 64) -> None:
        super().__init__()
        self.patch = patch // label_stride(patch)
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes + 1, class_dim)  # the last row is for unlabelled cells
        self.proj = nn.Linear(class_dim * self.patch**2, dim)

    def forward(
        self, maps: Integer[Tensor, "batch height width"], patch_idx: Int[Tensor, " selected"]
    ) -> Float[Tensor, "selected dim"]:
        """Return the tokens of these patches, which are indexed through the whole batch."""
        ids = gather_patches(maps, self.patch, patch_idx).flatten(1).int()
        cells = self.classes(torch.where(ids == IGNORE, self.num_classes, ids))
        return self.proj(cells.flatten(1))  # type: ignore[no-any-return]


class Embeddings(nn.ModuleDict):
    """The embeddings of a model, by granularity, in the order of the tokens."""

    def common_grid(self, maps: Mapping[str, Shaped[Tensor, "batch *map"]]) -> tuple[int, int]:
        """Return the rows and columns of patches, which must be the same in all maps."""
        grids = {name: compute_grid(name, tensor, cast(int, self[name].patch)) for name, tensor in maps.items()}
        first, grid = next(iter(grids.items()))
        for name, other in grids.items():
            if other != grid:
                raise UserError(
                    f"{name}: has {other[0]}×{other[1]} patches, but {first} has {grid[0]}×{grid[1]}. Resize the maps "
                    "to one image size"
                )
        return grid

    def forward(
        self, maps: Mapping[str, Shaped[Tensor, "batch *map"]], masks: Masks
    ) -> Float[Tensor, "batch visible dim"]:
        """Return a token for each visible patch, in the order of `masks.visible_idx`, without positions."""
        batch, num_visible = masks.visible_idx.shape
        tokens = None
        for name, members in zip(masks.granularities, _list_members(masks), strict=True):
            projected = self[name](maps[name], members.patches)
            if tokens is None:  # with a token at the end that surplus entries write
                tokens = projected.new_zeros(batch * num_visible + 1, projected.shape[1])
            tokens = tokens.index_copy(0, members.slots, projected.to(tokens.dtype))
        assert tokens is not None
        return tokens[:-1].view(batch, num_visible, tokens.shape[1])  # type: ignore[no-any-return]


def create_embeddings(vit: VisionTransformer, channels: Mapping[str, int]) -> Embeddings:
    """Return embeddings for granularities with these numbers of channels or classes; that of rgb is the ViT's own."""
    patch = vit.patch_embed.patch_size[0]

    def embedding(name: str) -> ImageEmbedding | IdEmbedding:
        if GRANULARITIES.get(name).kind == "ids":
            return IdEmbedding(channels[name], vit.embed_dim, patch=patch)
        if name == "rgb":
            return ImageEmbedding(vit.patch_embed)
        return ImageEmbedding(PatchEmbed(None, patch, channels[name], vit.embed_dim))

    return Embeddings({name: embedding(name) for name in channels})


def _list_members(masks: Masks) -> tuple[GranularityMembers, ...]:
    """Return the visible patches of each granularity, in exact lists where these neither synchronise nor recompile."""
    if torch.compiler.is_compiling():
        return masks.list_members(is_exact=False)
    return masks.members or masks.list_members(is_exact=masks.visible_idx.device.type == "cpu")
