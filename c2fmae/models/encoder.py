"""The encoder: any plain ViT of timm by name, its blocks run over our tokens."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.models.attention import DeviceAwareAttention
from c2fmae.models.positions import sincos_positions


class Encoder(DeviceAwareAttention):
    """A timm ViT's tokens, blocks and norm, under timm's names.

    Its patch embedding is the rgb granularity's. Positions are sines and cosines, for any grid, or with
    `use_vit_positions` the ViT's own table, resized to other grids; what that says of global token and registers is
    added to these.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        has_norm: bool = True,
        use_vit_positions: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim: int = vit.embed_dim
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self.grad_checkpointing = grad_checkpointing
        self.cls_token, self.reg_token = vit.cls_token, vit.reg_token
        self.norm_pre, self.blocks = vit.norm_pre, vit.blocks
        self.norm = vit.norm if has_norm else nn.Identity()
        self.pos_grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.register_buffer("pos_embed", None)
        if use_vit_positions:
            self._adopt_vit_positions(vit)
        self._choose_attention()

    def _adopt_vit_positions(self, vit: VisionTransformer) -> None:
        if vit.pos_embed is None:
            self.pos_embed = torch.zeros(1, vit.patch_embed.num_patches, self.dim)
            return
        table = vit.pos_embed.detach()
        if not vit.no_embed_class:
            if self.cls_token is not None:
                self.cls_token = nn.Parameter(self.cls_token.detach() + table[:, :1])
            if self.reg_token is not None:
                self.reg_token = nn.Parameter(
                    self.reg_token.detach()
                    + table[:, self.num_prefix_tokens - vit.num_reg_tokens : self.num_prefix_tokens]
                )
            table = table[:, self.num_prefix_tokens :]
        self.pos_embed = table.clone()

    def positions(self, grid: tuple[int, int], device: torch.device) -> Float[Tensor, "patch dim"]:
        """Return the positions of a grid's patches."""
        if self.pos_embed is None:
            return sincos_positions(grid, self.dim, device=device)
        table = resample_abs_pos_embed(self.pos_embed, list(grid), list(self.pos_grid), num_prefix_tokens=0)
        return table.squeeze(0)  # type: ignore[no-any-return]

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch latent dim"]:
        """Run the blocks over tokens that have their positions; the global token and registers come first."""
        x = self._prepend_prefix(tokens)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def get_intermediate_layers(
        self, tokens: Float[Tensor, "batch token dim"], depths: Sequence[int]
    ) -> list[Float[Tensor, "batch latent dim"]]:
        """Return what these blocks make of the tokens, counted from 1; the last block's is normed, as in `forward`."""
        if wrong := [depth for depth in depths if depth not in range(1, len(self.blocks) + 1)]:
            raise UserError(f"depth: there are blocks 1 to {len(self.blocks)}, got {wrong[0]}")
        x, outputs = self._prepend_prefix(tokens), {}
        for depth, block in enumerate(self.blocks[: max(depths, default=0)], start=1):
            x = block(x)
            outputs[depth] = self.norm(x) if depth == len(self.blocks) else x
        return [outputs[depth] for depth in depths]

    def _prepend_prefix(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch latent dim"]:
        prefix = [t.expand(len(tokens), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        return self.norm_pre(torch.cat([*prefix, tokens], dim=1))  # type: ignore[no-any-return]


def create_vit(
    name: str,
    *,
    image_size: Sequence[int] | None,
    channels: int = 3,
    drop_path: float = 0.0,
    fc_norm: bool | None = False,
    norm_eps: float | None = None,
    **shape: Any,
) -> VisionTransformer:
    """Return a plain ViT of timm without a head, its weights still to be drawn; what is not one is an error.

    `shape` is what differs from the named ViT: timm's patch_size, embed_dim, depth, num_heads, mlp_ratio. Its norm
    comes before pooling; with `fc_norm=True` behind it, and with None where timm has it. Without an image size, timm's.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models("vit_*"))
        raise UserError(f"timm has no encoder named {name!r}. {hint or 'timm.list_models() names all'}")
    size: dict[str, Any] = {"img_size": tuple(image_size)} if image_size else {}
    if norm_eps:
        size["norm_layer"] = partial(LayerNorm, eps=norm_eps)
    try:
        vit = timm.create_model(
            name,
            **size,
            in_chans=channels,
            num_classes=0,
            drop_path_rate=drop_path,
            fc_norm=fc_norm,  # a ViT that norms after pooling would have no norm here
            weight_init="skip",  # timm's own draw takes seconds
            **shape,
        )
    except (TypeError, AssertionError) as error:  # it does not know these settings, or they do not suit it
        if shape and _is_plain(name):
            raise UserError(f"encoder {name!r} cannot be made with {shape}: {error}") from error
        vit = None
    if type(vit) is not VisionTransformer or type(vit.patch_embed) is not PatchEmbed:
        raise UserError(f"encoder {name!r} is not a plain ViT. Take one like vit_base_patch16_224")
    return vit


def _is_plain(name: str) -> bool:
    try:
        return type(timm.create_model(name, num_classes=0, weight_init="skip")) is VisionTransformer
    except (TypeError, AssertionError):
        return False
