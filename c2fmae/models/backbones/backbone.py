"""The interface of a pre-trained ViT for downstream tasks: tokens, pooled features and feature maps."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Shaped, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.detector_spec import WindowSpec
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.pixels import standardise
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec, Pooling
from c2fmae.models.autoencoder import embed_visible, list_vit_layers
from c2fmae.models.backbones.load_report import LoadReport
from c2fmae.models.embeddings import Embeddings, create_embeddings
from c2fmae.models.encoder import Encoder, create_vit
from c2fmae.models.initialise import initialise
from c2fmae.models.patches import pad_to_patches
from c2fmae.models.relative_positions import RelativePositionModule

BackboneInput = Mapping[str, Shaped[Tensor, "batch *map"]] | Float[Tensor, "batch channels height width"]
"""Standardised images and id maps by granularity, or only a tensor of images."""


class Backbone(nn.Module):
    """An encoder with the embeddings of its granularities, applied to all patches without masking.

    For images only, `tokens` equals timm's `forward_features` with the same weights, and `pooled` equals
    `forward_head(forward_features(…), pre_logits=True)`.
    """

    def __init__(self, spec: BackboneSpec, embeddings: Embeddings, encoder: Encoder, fc_norm: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = embeddings
        self.encoder = encoder
        self.fc_norm = fc_norm
        self.load_report = LoadReport(source="new backbone", loaded=())
        """The source of the weights."""

    @property
    def granularities(self) -> tuple[str, ...]:
        """The input granularities, in the order of the tokens."""
        return tuple(self.embeddings)

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        return cast(int, self.spec.encoder.patch_size)

    @property
    def dim(self) -> int:
        """The width of the tokens."""
        return self.encoder.dim

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.encoder.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patch tokens: class token and registers."""
        return self.encoder.num_prefix_tokens

    def stretches_positions(self, image_size: tuple[int, int]) -> bool:
        """Return whether the sines and cosines of images of this height and width are stretched from another grid."""
        grid = (image_size[0] // self.patch, image_size[1] // self.patch)
        return self.encoder.pos_embed is None and self.encoder.pos_grid != grid

    def standardise(self, images: UInt8[Tensor, "batch channels height width"]) -> Tensor:
        """Return the standardised images that the ViT takes: (value / 255 - mean) / std.

        Grey images of one channel are repeated for a ViT of three.
        """
        channels = len(self.spec.mean)
        if images.shape[1] == 1 and channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != channels:
            raise UserError(
                f"images: expected {channels} channels, as the ViT was trained on, got {images.shape[1]}. Use images of"
                " these channels; `c2fmae data measure` writes their number into dataset.json"
            )
        mean, std = (torch.tensor(values, device=images.device) for values in (self.spec.mean, self.spec.std))
        return standardise(images, mean, std)

    def forward(self, maps: BackboneInput) -> Float[Tensor, "batch token dim"]:
        """Return `tokens`: the entry point of hooks, compilation and operation counters."""
        return self.tokens(maps)

    def tokens(self, maps: BackboneInput) -> Float[Tensor, "batch token dim"]:
        """Return the normed tokens of the last block: class token, registers, then the patches of each granularity."""
        return self.encoder(self._embed(maps)[0])  # type: ignore[no-any-return]

    def get_intermediate_layers(
        self, maps: BackboneInput, depths: Sequence[int]
    ) -> list[Float[Tensor, "batch token dim"]]:
        """Return the tokens after these blocks, counted from 1; only those of the last block are normed."""
        return self.encoder.get_intermediate_layers(self._embed(maps)[0], depths)

    def pool(
        self, tokens: Float[Tensor, "batch token dim"], pooling: Pooling | None = None, *, depth: int | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return pooled features: the mean of the patch tokens, or the class token.

        `depth` is the block that returned the tokens, by default the last. A norm after pooling is applied only to
        tokens of the last block, with which it was trained.
        """
        pooling = pooling or self.spec.pool
        if pooling == "cls" and self.encoder.cls_token is None:  # the first token would be a register or a patch
            raise UserError("pooling: this backbone has no class token. Use pooling='mean'")
        pooled = tokens[:, 0] if pooling == "cls" else tokens[:, self.num_prefix_tokens :].mean(dim=1)
        return self.fc_norm(pooled) if depth in (None, self.depth) else pooled

    def pooled(self, maps: BackboneInput, pooling: Pooling | None = None) -> Float[Tensor, "batch dim"]:
        """Return pooled features of the last block's tokens."""
        return self.pool(self.tokens(maps), pooling)

    def feature_maps(
        self,
        maps: BackboneInput,
        depths: Sequence[int],
        granularity: str = "rgb",
        *,
        normed: bool = True,
        relative: RelativePositionModule | None = None,
        windows: WindowSpec | None = None,
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """Return the patch tokens of a granularity after these blocks, as two-dimensional maps.

        Maps of any size are padded on the right and bottom to multiples of the patch size: images with zeros, which
        are the mean colour, id maps as unlabelled. With `normed=False` tokens of the last block are not normed either.
        `relative` positions change attention. With `windows`, patches attend within windows, in most blocks, and there
        are no class and register tokens. Both are for maps of a single granularity.
        """
        embedded, names, grid = self._embed(maps, is_padded=True)
        if granularity not in names:
            raise unknown_name_error("granularity among the maps", granularity, names)
        if (relative or windows) and len(names) > 1:
            raise UserError(
                f"maps: expected a single granularity with windows or relative positions, got {', '.join(names)}. "
                "Leave the others out"
            )
        size = grid[0] * grid[1]
        num_prefix_tokens = 0 if windows else self.num_prefix_tokens
        first = num_prefix_tokens + names.index(granularity) * size
        layers = self.encoder.get_intermediate_layers(
            embedded,
            depths,
            normed=normed,
            attn_bias=relative,
            windows=windows,
            grid=grid,
        )
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
            got = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise UserError(
                f"images: expected a floating-point tensor [batch, {channels}, height, width], got {got}. "
                "Use Backbone.standardise"
            )

    def _embed(
        self, maps: BackboneInput, *, is_padded: bool = False
    ) -> tuple[Tensor, tuple[str, ...], tuple[int, int]]:
        maps = maps if isinstance(maps, Mapping) else {"rgb": maps}
        for name in maps:
            if name not in self.embeddings:
                raise unknown_name_error("granularity of this backbone", name, self.granularities)
        if "rgb" in maps:
            self._check_images(maps["rgb"])
        names = tuple(name for name in self.granularities if name in maps)
        if not names:
            raise UserError(f"maps: is empty. Pass at least one of {', '.join(self.granularities)}")
        maps = {name: self._pad(name, maps[name]) if is_padded else maps[name] for name in names}
        rows, columns = self.embeddings.common_grid(maps)
        first = maps[names[0]]
        masks = Masks.from_visible_granularities(
            names, names, batch=len(first), num_patches=rows * columns, device=first.device
        )
        tokens, grid = embed_visible(self.embeddings, self.encoder, maps, masks)
        return tokens, names, grid

    def _pad(self, name: str, maps: Tensor) -> Tensor:
        fill_value = IGNORE if GRANULARITIES.get(name).kind == "ids" else 0
        return pad_to_patches(maps, cast(int, self.embeddings[name].patch), fill_value)


def vit_from_spec(spec: BackboneSpec) -> VisionTransformer:
    """Return the timm ViT of a spec; its weights are not initialised."""
    return create_vit(
        spec.encoder.name,
        image_size=spec.image_size,
        channels=spec.channels.get("rgb", 3),
        drop_path=spec.encoder.drop_path,
        fc_norm=spec.has_fc_norm,
        **spec.encoder.vit_kwargs(),
    )


def wrap_vit(vit: VisionTransformer, spec: BackboneSpec) -> Backbone:
    """Return a backbone that shares a ViT's weights, in evaluation mode; embeddings of id maps are created."""
    encoder = Encoder(
        vit,
        has_norm=True,  # readers of weights without a norm add one
        use_vit_positions=spec.encoder.keep_positions,
        grad_checkpointing=spec.encoder.grad_checkpointing,
        position_grid=spec.encoder.position_grid,
    )
    patch = {"patch_size": vit.patch_embed.patch_size[0]}  # stored even where it is that of the named ViT
    spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update=patch)})
    return Backbone(spec, create_embeddings(vit, spec.channels), encoder, vit.fc_norm).eval()


def restrict_granularities(backbone: Backbone, names: Collection[str]) -> Backbone:
    """Return the backbone with the embeddings of these granularities only; weights are shared."""
    for name in names:
        if name not in backbone.embeddings:
            raise unknown_name_error("granularity of this backbone", name, backbone.granularities)
    selected = [name for name in backbone.granularities if name in names]
    class_names = backbone.spec.class_names if "semantic" in selected else ()
    channels = {name: backbone.spec.channels[name] for name in selected}
    spec = backbone.spec.model_copy(update={"channels": channels, "class_names": class_names})
    embeddings = Embeddings({name: backbone.embeddings[name] for name in selected})
    restricted_backbone = Backbone(spec, embeddings, backbone.encoder, backbone.fc_norm).train(backbone.training)
    restricted_backbone.load_report = backbone.load_report
    return restricted_backbone


def create_untrained_backbone(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """Return a randomly initialised ViT with sine and cosine positions: the baseline for pre-trained ones."""
    spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"keep_positions": False})})
    backbone = wrap_vit(vit_from_spec(spec), spec)
    initialise(backbone, torch.Generator().manual_seed(derive_seed(seed, "weights")))
    backbone.load_report = LoadReport(source="untrained weights", loaded=())
    return backbone
