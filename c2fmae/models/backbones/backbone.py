"""One interface for every downstream task: what a ViT says of photos, and of maps where it has learned from them."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Shaped, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError, unknown_name
from c2fmae.core.masks import Masks
from c2fmae.core.pixels import standardise
from c2fmae.core.seeding import seed_of
from c2fmae.models.autoencoder import embed_visible
from c2fmae.models.backbones.load_report import LoadReport
from c2fmae.models.backbones.spec import BackboneSpec, Pool
from c2fmae.models.embeddings import Embeddings, embeddings_of
from c2fmae.models.encoder import Encoder, create_vit
from c2fmae.models.initialise import initialise

Maps = Mapping[str, Shaped[Tensor, "batch *map"]] | Float[Tensor, "batch channels height width"]
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
        self.report = LoadReport(source="made anew", loaded=())
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
    def num_prefix(self) -> int:
        """How many tokens come before those of patches: the global token and registers."""
        return self.encoder.num_prefix

    def standardise(self, photos: UInt8[Tensor, "batch channels height width"]) -> Tensor:
        """Return photos as the ViT knows them: (value / 255 - mean) / std."""
        mean, std = (torch.tensor(each, device=photos.device) for each in (self.spec.mean, self.spec.std))
        return standardise(photos, mean, std)

    def forward(self, maps: Maps) -> Float[Tensor, "batch token dim"]:
        """Return `tokens`."""
        return self.tokens(maps)

    def tokens(self, maps: Maps) -> Float[Tensor, "batch token dim"]:
        """Return the last block's tokens, normed: global token and registers, then each granularity's patches."""
        return self.encoder(self._embedded(maps)[0])  # type: ignore[no-any-return]

    def layers(self, maps: Maps, depths: Sequence[int]) -> list[Float[Tensor, "batch token dim"]]:
        """Return the tokens behind these blocks, counted from 1; only the last block's are normed."""
        return self.encoder.layers(self._embedded(maps)[0], depths)

    def pool(
        self, tokens: Float[Tensor, "batch token dim"], how: Pool | None = None, *, depth: int | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return one vector for all tokens: the mean of the patches', or the global token.

        `depth` is the block that they are behind, the last unless given. A norm behind the pooling is for the last
        block's alone, by which it was learned.
        """
        how = how or self.spec.pool
        if how == "cls" and self.encoder.cls_token is None:  # what comes first is a register, if anything
            raise UserError("this backbone has no global token. Pool by the mean")
        vector = tokens[:, 0] if how == "cls" else tokens[:, self.num_prefix :].mean(dim=1)
        return self.fc_norm(vector) if depth in (None, self.depth) else vector

    def pooled(self, maps: Maps, how: Pool | None = None) -> Float[Tensor, "batch dim"]:
        """Return one vector an image."""
        return self.pool(self.tokens(maps), how)

    def feature_maps(
        self, maps: Maps, depths: Sequence[int], granularity: str = "rgb"
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """Return a granularity's patches behind these blocks, laid out as they lie in the image."""
        embedded, names, grid = self._embedded(maps)
        if granularity not in names:
            raise unknown_name("granularity among the maps", granularity, names)
        size = grid[0] * grid[1]
        first = self.num_prefix + names.index(granularity) * size
        layers = self.encoder.layers(embedded, depths)
        return [x[:, first : first + size].transpose(1, 2).unflatten(2, grid) for x in layers]

    def _check_photos(self, photos: Tensor) -> None:
        channels = self.spec.channels["rgb"]
        if photos.ndim != 4 or photos.shape[1] != channels or not photos.is_floating_point():
            what = f"{str(photos.dtype).removeprefix('torch.')} {tuple(photos.shape)}"
            raise UserError(
                f"photos: expected numbers as `standardise` makes them of bytes, [batch, {channels}, height, width], "
                f"got {what}"
            )

    def _embedded(self, maps: Maps) -> tuple[Tensor, tuple[str, ...], tuple[int, int]]:
        maps = maps if isinstance(maps, Mapping) else {"rgb": maps}
        for name in maps:
            if name not in self.embeddings:
                raise unknown_name("granularity of this backbone", name, self.granularities)
        if "rgb" in maps:
            self._check_photos(maps["rgb"])
        names = tuple(name for name in self.granularities if name in maps)
        if not names:
            raise UserError(f"no maps are given. This backbone takes {', '.join(self.granularities)}")
        rows, columns = self.embeddings.grid({name: maps[name] for name in names})
        first = maps[names[0]]
        shown = Masks.showing(names, names, batch=len(first), num_patches=rows * columns, device=first.device)
        tokens, grid = embed_visible(self.embeddings, self.encoder, maps, shown)
        return tokens, names, grid


def vit_of(spec: BackboneSpec) -> VisionTransformer:
    """Return the timm ViT that a spec means, its weights not yet drawn."""
    return create_vit(
        spec.encoder.name,
        image_size=spec.image_size,
        channels=spec.channels.get("rgb", 3),
        drop_path=spec.encoder.drop_path,
        fc_norm=spec.has_fc_norm,
        **spec.encoder.shape(),
    )


def wrap(vit: VisionTransformer, spec: BackboneSpec) -> Backbone:
    """Make a ViT a backbone that shares its weights, in evaluation mode; what it lacks, as maps' embeddings, is new."""
    encoder = Encoder(
        vit,
        has_norm=True,  # whoever loads weights that have none says so
        keep_positions=spec.encoder.keep_positions,
        checkpoint=spec.encoder.checkpoint,
    )
    patch = {"patch_size": vit.patch_embed.patch_size[0]}  # whether or not it is that of the name
    spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update=patch)})
    return Backbone(spec, embeddings_of(vit, spec.channels), encoder, vit.fc_norm).eval()


def restricted(backbone: Backbone, names: Collection[str]) -> Backbone:
    """Return the backbone without what it has learned of other granularities than these; its weights are shared."""
    for name in names:
        if name not in backbone.embeddings:
            raise unknown_name("granularity of this backbone", name, backbone.granularities)
    kept = [name for name in backbone.granularities if name in names]
    class_names = backbone.spec.class_names if "semantic" in kept else ()
    channels = {name: backbone.spec.channels[name] for name in kept}
    spec = backbone.spec.model_copy(update={"channels": channels, "class_names": class_names})
    embeddings = Embeddings({name: backbone.embeddings[name] for name in kept})
    alone = Backbone(spec, embeddings, backbone.encoder, backbone.fc_norm).train(backbone.training)
    alone.report = backbone.report
    return alone


def untrained(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """Return a ViT with weights drawn anew, and sines and cosines for positions: what to compare others with."""
    spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"keep_positions": False})})
    fresh = wrap(vit_of(spec), spec)
    initialise(fresh, torch.Generator().manual_seed(seed_of(seed, "weights")))
    fresh.report = LoadReport(source="weights drawn anew", loaded=())
    return fresh
