"""Attention that is fused on a GPU and explicit on other devices, and the blocks of the decoders."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from c2fmae.core.precision import without_autocast

M = TypeVar("M", bound="DeviceAwareAttention")

ALL_TOKENS = slice(None)

_MIN_FUSED_TOKENS = 1024


class DeviceAwareAttention(nn.Module):
    """A module that uses fused attention on a GPU and explicit attention on other devices.

    On a CPU the backward pass of the fused kernel is slower than matmul, softmax, matmul: by a quarter of a bfloat16
    training step. Without gradients it is faster if there are many tokens; see `_evaluation_attention`.
    """

    def _apply(self: M, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._choose_attention()
        return self

    def _choose_attention(self) -> None:
        """Set `fused_attn` of all submodules; subclasses must call it at the end of `__init__`."""
        self._set_fused(next(self.parameters()).is_cuda)

    def _set_fused(self, is_fused: bool) -> None:
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = is_fused  # type: ignore[assignment]  # a plain bool, not a buffer

    @contextmanager
    def _evaluation_attention(self, tokens: Float[Tensor, "batch token dim"]) -> Iterator[None]:
        """Use fused attention for many tokens on a CPU without gradients, where it is faster and needs less memory.

        With fewer tokens the two take about as long, and features stay bitwise equal with and without gradients.
        """
        is_fused_for_pass = (
            tokens.shape[1] >= _MIN_FUSED_TOKENS
            and tokens.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )
        if is_fused_for_pass:
            self._set_fused(True)
        try:
            yield
        finally:
            if is_fused_for_pass:
                self._choose_attention()


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a context."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = False
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "batch query dim"], context: Float[Tensor, "batch key dim"]
    ) -> Float[Tensor, "batch query dim"]:
        """Return the output of each query."""
        q = self.q(queries).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            attended = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(dim=3) @ v
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP. With `query_residual` (not in MultiMAE), queries are added to the output."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, *, query_residual: bool = True) -> None:
        super().__init__()
        self.query_residual = query_residual
        self.norm_query, self.norm_context, self.norm = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
        self.attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, queries: Float[Tensor, "batch query dim"], context: Float[Tensor, "batch key dim"]
    ) -> Float[Tensor, "batch query dim"]:
        """Return the updated queries."""
        attended = self.attn(self.norm_query(queries), self.norm_context(context))
        x = queries + attended if self.query_residual else attended
        return x + self.mlp(self.norm(x))  # type: ignore[no-any-return]


def create_self_block(dim: int, num_heads: int, mlp_ratio: float = 4.0) -> Block:
    """Return timm's pre-norm self-attention block with the options of MAE."""
    return Block(dim, num_heads, mlp_ratio, qkv_bias=True)


def compute_attention_weights(
    attention: Attention,
    tokens: Float[Tensor, "batch token dim"],
    *,
    queries: slice = ALL_TOKENS,
    keys: slice = ALL_TOKENS,
) -> Float[Tensor, "batch head query key"]:
    """Return the weights of timm's attention, given its input, at least in float32.

    Those of a query add up to 1 over the selected keys.
    """
    q, k, _ = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q[:, :, queries]), attention.k_norm(k[:, :, keys])
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device):  # in bfloat16, less than half of the weights of 196 keys differ
        logits: Tensor = q.to(dtype) * attention.scale @ k.to(dtype).transpose(2, 3)
        return logits.softmax(dim=3)
