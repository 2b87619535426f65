"""Which ViTs transformers' own can express: it knows one kind, the first."""

from typing import Any

from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn


def hf_unsupported_reason(vit: VisionTransformer) -> str:
    """Return what a ViT has that transformers' ViTModel has not, or nothing."""
    names = list(vit.state_dict())
    checks = {
        "its head reads the mean of patches, and theirs the global token": vit.num_classes > 0
        and vit.global_pool != "token",
        "its norm comes behind the pooling": isinstance(vit.norm, nn.Identity),
        "it has no global token": vit.cls_token is None,
        "it has registers": vit.reg_token is not None,
        "it has no positions": vit.pos_embed is None,
        "it has a norm before its blocks": not isinstance(vit.norm_pre, nn.Identity),
        "it has a norm behind its patch embedding": not isinstance(vit.patch_embed.norm, nn.Identity),
        "its patch embedding has no bias": vit.patch_embed.proj.bias is None,
        "it has layer scales": any(".ls1." in name or ".ls2." in name for name in names),
        "it norms queries and keys": any(".q_norm." in name for name in names),
        "it norms within attention or MLP": any(".attn.norm." in name or ".mlp.norm." in name for name in names),
        "its blocks are not those of a plain ViT": not all(_is_plain_block(block) for block in vit.blocks),
    }
    if unsupported := next((reason for reason, is_so in checks.items() if is_so), ""):
        return unsupported
    blocks: list[Any] = list(vit.blocks)
    norms: list[Any] = [vit.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    if any(not isinstance(norm, nn.LayerNorm) or norm.bias is None for norm in norms):
        return f"its norms are not LayerNorm with scale and shift but {type(norms[0]).__name__}"
    if len(eps := {norm.eps for norm in norms}) > 1:
        return f"its norms add different eps, {', '.join(map(str, sorted(eps)))}"
    if other := next((b.mlp.act for b in blocks if not _is_gelu(b.mlp.act)), None):
        return f"its activation is not the exact GELU but {type(other).__name__}"
    biases = [(b.attn.proj.bias, b.mlp.fc1.bias, b.mlp.fc2.bias) for b in blocks]
    return "its projections have no biases" if any(bias is None for each in biases for bias in each) else ""


def _is_plain_block(block: nn.Module) -> bool:
    return type(block) is Block and type(block.attn).__name__ == "Attention" and type(block.mlp) is Mlp


def _is_gelu(act: nn.Module) -> bool:
    return isinstance(act, nn.GELU) and act.approximate == "none"
