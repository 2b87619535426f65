"""One interface for every downstream task: what a ViT says of photos, and of maps where it has learned from them."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Shaped, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.masks import Masks
from c2fmae.core.pixels import standardise
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec, Pooling
from c2fmae.models.autoencoder import embed_visible, list_vit_layers
from c2fmae.models.backbones.load_report import LoadReport
from c2fmae.models.embeddings import Embeddings, create_embeddings
from c2fmae.models.encoder import Encoder, create_vit
from c2fmae.models.initialise import initialise

BackboneInput = Mapping[str, Shaped[Tensor, "batch *map"]] | Float[Tensor, "batch channels height width"]
"""Standardised photos and id maps by granularity, or photos alone."""


class Backbone(nn.Module):
    """An encoder with the embeddings of what it takes. It never hides anything and draws nothing.

    Of photos alone, `tokens` is what timm's `forward_features` returns for the same weights, and `pooled` what its
    `forward_head(…, pre_logits=True)` does.
    """

    def __init__(self, spec: BackboneSpec, embeddings: Embeddings, encoder: Encoder, fc_norm: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = embeddings
        self.encoder = encoder
        self.fc_norm = fc_norm
        self.load_report = LoadReport(source="made anew", loaded=())
        """Where its weights are from."""

    @property
    def granularities(self) -> tuple[str, ...]:
        """What it takes, in the order of its tokens."""
        return tuple(self.embeddings)

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return cast(int, self.spec.encoder.patch_size)

    @property
    def dim(self) -> int:
        """The width of its tokens."""
        return self.encoder.dim

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return len(self.encoder.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens come before those of patches: the global token and registers."""
        return self.encoder.num_prefix_tokens

    def standardise(self, images: UInt8[Tensor, "batch channels height width"]) -> Tensor:
        """Return photos as the ViT knows them: (value / 255 - mean) / std."""
        mean, std = (torch.tensor(each, device=images.device) for each in (self.spec.mean, self.spec.std))
        return standardise(images, mean, std)

    def forward(self, maps: BackboneInput) -> Float[Tensor, "batch token dim"]:
        """Return `tokens`."""
        return self.tokens(maps)

    def tokens(self, maps: BackboneInput) -> Float[Tensor, "batch token dim"]:
        """Return the last block's tokens, normed: global token and registers, then each granularity's patches."""
        return self.encoder(self._embed(maps)[0])  # type: ignore[no-any-return]

    def get_intermediate_layers(
        self, maps: BackboneInput, depths: Sequence[int]
    ) -> list[Float[Tensor, "batch token dim"]]:
        """Return the tokens behind these blocks, counted from 1; only the last block's are normed."""
        return self.encoder.get_intermediate_layers(self._embed(maps)[0], depths)

    def pool(
        self, tokens: Float[Tensor, "batch token dim"], pooling: Pooling | None = None, *, depth: int | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return one vector for all tokens: the mean of the patches', or the global token.

        `depth` is the block that they are behind, the last unless given. A norm behind the pooling is for the last
        block's alone, by which it was learned.
        """
        pooling = pooling or self.spec.pool
        if pooling == "cls" and self.encoder.cls_token is None:  # what comes first is a register, if anything
            raise UserError("this backbone has no global token. Pool by the mean")
        vector = tokens[:, 0] if pooling == "cls" else tokens[:, self.num_prefix_tokens :].mean(dim=1)
        return self.fc_norm(vector) if depth in (None, self.depth) else vector

    def pooled(self, maps: BackboneInput, pooling: Pooling | None = None) -> Float[Tensor, "batch dim"]:
        """Return one vector an image."""
        return self.pool(self.tokens(maps), pooling)

    def feature_maps(
        self, maps: BackboneInput, depths: Sequence[int], granularity: str = "rgb"
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """Return a granularity's patches behind these blocks, laid out as they lie in the image."""
        embedded, names, grid = self._embed(maps)
        if granularity not in names:
            raise unknown_name_error("granularity among the maps", granularity, names)
        size = grid[0] * grid[1]
        first = self.num_prefix_tokens + names.index(granularity) * size
        layers = self.encoder.get_intermediate_layers(embedded, depths)
        return [x[:, first : first + size].transpose(1, 2).unflatten(2, grid) for x in layers]

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embeddings and tokens, then those of each block."""
        return list_vit_layers(self.embeddings, self.encoder)

    def sharding_units(self) -> list[nn.Module]:
        """Return the blocks."""
        return [*self.encoder.blocks]

    def _check_images(self, images: Tensor) -> None:
        channels = self.spec.channels["rgb"]
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            what = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise UserError(
                f"photos: expected numbers as `standardise` makes them of bytes, [batch, {channels}, height, width], "
                f"got {what}"
            )

    def _embed(self, maps: BackboneInput) -> tuple[Tensor, tuple[str, ...], tuple[int, int]]:
        maps = maps if isinstance(maps, Mapping) else {"rgb": maps}
        for name in maps:
            if name not in self.embeddings:
                raise unknown_name_error("granularity of this backbone", name, self.granularities)
        if "rgb" in maps:
            self._check_images(maps["rgb"])
        names = tuple(name for name in self.granularities if name in maps)
        if not names:
            raise UserError(f"no maps are given. This backbone takes {', '.join(self.granularities)}")
        rows, columns = self.embeddings.common_grid({name: maps[name] for name in names})
        first = maps[names[0]]
        masks = Masks.from_visible_granularities(
            names, names, batch=len(first), num_patches=rows * columns, device=first.device
        )
        tokens, grid = embed_visible(self.embeddings, self.encoder, maps, masks)
        return tokens, names, grid


def vit_from_spec(spec: BackboneSpec) -> VisionTransformer:
    """Return the timm ViT that a spec means, its weights not yet drawn."""
    return create_vit(
        spec.encoder.name,
        image_size=spec.image_size,
        channels=spec.channels.get("rgb", 3),
        drop_path=spec.encoder.drop_path,
        fc_norm=spec.has_fc_norm,
        **spec.encoder.vit_kwargs(),
    )


def wrap_vit(vit: VisionTransformer, spec: BackboneSpec) -> Backbone:
    """Make a ViT a backbone that shares its weights, in evaluation mode; what it lacks, as maps' embeddings, is new."""
    encoder = Encoder(
        vit,
        has_norm=True,  # whoever loads weights that have none says so
        use_vit_positions=spec.encoder.keep_positions,
        grad_checkpointing=spec.encoder.grad_checkpointing,
    )
    patch = {"patch_size": vit.patch_embed.patch_size[0]}  # whether or not it is that of the name
    spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update=patch)})
    return Backbone(spec, create_embeddings(vit, spec.channels), encoder, vit.fc_norm).eval()


def restrict_granularities(backbone: Backbone, names: Collection[str]) -> Backbone:
    """Return the backbone without what it has learned of other granularities than these; its weights are shared."""
    for name in names:
        if name not in backbone.embeddings:
            raise unknown_name_error("granularity of this backbone", name, backbone.granularities)
    kept = [name for name in backbone.granularities if name in names]
    class_names = backbone.spec.class_names if "semantic" in kept else ()
    channels = {name: backbone.spec.channels[name] for name in kept}
    spec = backbone.spec.model_copy(update={"channels": channels, "class_names": class_names})
    embeddings = Embeddings({name: backbone.embeddings[name] for name in kept})
    restricted_backbone = Backbone(spec, embeddings, backbone.encoder, backbone.fc_norm).train(backbone.training)
    restricted_backbone.load_report = backbone.load_report
    return restricted_backbone


def create_untrained_backbone(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """Return a ViT with weights drawn anew, and sines and cosines for positions: what to compare others with."""
    spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"keep_positions": False})})
    fresh = wrap_vit(vit_from_spec(spec), spec)
    initialise(fresh, torch.Generator().manual_seed(derive_seed(seed, "weights")))
    fresh.load_report = LoadReport(source="weights drawn anew", loaded=())
    return fresh
