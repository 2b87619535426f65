"""The encoder: the blocks of any plain ViT of timm, applied to tokens of visible patches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import checkpoint, checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.detector_spec import WindowSpec
from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.models.attention import DeviceAwareAttention
from c2fmae.models.attention_bias import AttentionBias
from c2fmae.models.positions import cached_sincos_positions
from c2fmae.models.residual_stream import ResidualStream
from c2fmae.models.windows import run_block


class Encoder(DeviceAwareAttention, ResidualStream):
    """The class and register tokens, blocks and norm of a timm ViT, under timm's names.

    The ViT's patch embedding is that of the rgb granularity. Positions are sines and cosines, or with
    `use_vit_positions` the ViT's own table, whose entries for class and register tokens are added to these tokens. For
    other grids than that of training, sines and cosines are stretched and the table is interpolated.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        has_norm: bool = True,
        use_vit_positions: bool = False,
        grad_checkpointing: bool = False,
        position_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.dim: int = vit.embed_dim
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self.grad_checkpointing = grad_checkpointing
        self.cls_token, self.reg_token = vit.cls_token, vit.reg_token
        self.norm_pre, self.blocks = vit.norm_pre, vit.blocks
        self.norm = vit.norm if has_norm else nn.Identity()
        self.pos_grid: tuple[int, int] = position_grid or tuple(vit.patch_embed.grid_size)
        """Rows and columns of patches that the positions were trained for."""
        self.register_buffer("pos_embed", None)
        if use_vit_positions:
            self._adopt_vit_positions(vit)
        self._choose_attention()

    def _adopt_vit_positions(self, vit: VisionTransformer) -> None:
        self.pos_grid = tuple(vit.patch_embed.grid_size)
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
        """Return the position embeddings of a grid's patches, row by row."""
        if self.pos_embed is None:
            return cached_sincos_positions(grid, self.dim, trained_grid=self.pos_grid, device=device)
        table = resample_abs_pos_embed(self.pos_embed, list(grid), list(self.pos_grid), num_prefix_tokens=0)
        return table.squeeze(0)  # type: ignore[no-any-return]

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch latent dim"]:
        """Return the latents of tokens that include their positions; class and register tokens are prepended."""
        x = self._prepend_prefix(tokens)
        with self._evaluation_attention(x):
            x = checkpoint_seq(self.blocks, x) if self._recomputes_blocks else self.blocks(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def get_intermediate_layers(
        self,
        tokens: Float[Tensor, "batch token dim"],
        depths: Sequence[int],
        *,
        normed: bool = True,
        attn_bias: Callable[[int, tuple[int, int]], AttentionBias] | None = None,
        windows: WindowSpec | None = None,
        grid: tuple[int, int] | None = None,
    ) -> list[Float[Tensor, "batch latent dim"]]:
        """Return the outputs of these blocks, counted from 1; only that of the last block is normed, if `normed`.

        `attn_bias` returns what a block adds to the products of its queries and keys, given its number and the grid of
        patches that attend to each other in it. It is called in the block, so that the bias of only one is in memory.
        With `windows` patches attend within windows, and no class and register tokens are prepended. Both need the
        `grid` of the tokens.
        """
        if invalid := [depth for depth in depths if depth not in range(1, len(self.blocks) + 1)]:
            raise UserError(
                f"depth: expected a block from 1 to {len(self.blocks)}, got {invalid[0]}. Choose another block"
            )
        if grid is None and (windows or attn_bias):
            raise ValueError("grid: windows and biases of attention need the grid of the tokens (got None)")

        def run(depth: int, x: Tensor) -> Tensor:
            window = windows.choose_window(depth, grid) if windows and grid else None
            return run_block(
                self.blocks[depth - 1],
                x,
                attn_bias(depth, window or grid) if attn_bias and grid else None,
                grid=grid,
                window=window,
                mask_padding=windows is not None and windows.pad_keys == "masked",
            )

        x, outputs = self.norm_pre(tokens) if windows else self._prepend_prefix(tokens), {}
        with self._evaluation_attention(x):
            for depth in range(1, max(depths, default=0) + 1):
                x = checkpoint(partial(run, depth), x) if self._recomputes_blocks else run(depth, x)
                outputs[depth] = self.norm(x) if normed and depth == len(self.blocks) else x
        return [outputs[depth] for depth in depths]

    def remove_prefix_tokens(self) -> None:
        """Remove the class and register tokens, which windows do not have."""
        self.cls_token = self.reg_token = None
        self.num_prefix_tokens = 0

    @property
    def _recomputes_blocks(self) -> bool:
        return self.grad_checkpointing and self.training

    def _prepend_prefix(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch latent dim"]:
        prefix = [t.expand(len(tokens), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        return self.begin_stream(self.norm_pre(torch.cat([*prefix, tokens], dim=1)))


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
    """Return a plain ViT of timm without a head; its weights are not initialised. Reject other models.

    `shape` overrides arguments of the named ViT: timm's patch_size, embed_dim, depth, num_heads, mlp_ratio. The last
    norm comes before pooling, with `fc_norm=True` after pooling, and with None where timm has it. With an `image_size`
    of None, that of the named ViT is used.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models("vit_*"))
        raise UserError(f"encoder: timm has no model named {name!r}. {hint or 'See timm.list_models()'}")
    vit_options: dict[str, Any] = {"img_size": tuple(image_size)} if image_size else {}
    if norm_eps:
        vit_options["norm_layer"] = partial(LayerNorm, eps=norm_eps)
    try:
        vit = timm.create_model(
            name,
            **vit_options,
            in_chans=channels,
            num_classes=0,
            drop_path_rate=drop_path,
            fc_norm=fc_norm,
            weight_init="skip",  # initialising weights takes timm seconds
            **shape,
        )
    except (TypeError, AssertionError) as error:  # arguments that the model does not have, or that it rejects
        if shape and _is_plain(name):
            raise UserError(f"encoder: {name!r} does not accept {shape}: {error}. Change these options") from error
        vit = None
    if type(vit) is not VisionTransformer or type(vit.patch_embed) is not PatchEmbed:
        raise UserError(f"encoder: {name!r} is not a plain ViT. Use one such as vit_base_patch16_224")
    return vit


def _is_plain(name: str) -> bool:
    try:
        return type(timm.create_model(name, num_classes=0, weight_init="skip")) is VisionTransformer
    except (TypeError, AssertionError):
        return False
