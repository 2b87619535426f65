"""The check whether a timm ViT has the one architecture that transformers, MAE, detectron2 and mmseg have."""

from typing import Any

from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn


def not_plain_vit_reason(vit: VisionTransformer) -> str:
    """Return the first feature of a ViT that a plain ViT lacks; empty if it is one, with its last norm anywhere."""
    names = list(vit.state_dict())
    checks = {
        "it has no class token": vit.cls_token is None,
        "it has register tokens": vit.reg_token is not None,
        "it has no position embeddings": vit.pos_embed is None,
        "it has a norm before its blocks": not isinstance(vit.norm_pre, nn.Identity),
        "it has a norm after its patch embedding": not isinstance(vit.patch_embed.norm, nn.Identity),
        "its patch embedding has no bias": vit.patch_embed.proj.bias is None,
        "it has layer scales": any(".ls1." in name or ".ls2." in name for name in names),
        "it normalises queries and keys": any(".q_norm." in name for name in names),
        "it has norms inside attention or MLP": any(".attn.norm." in name or ".mlp.norm." in name for name in names),
        "its blocks are not those of a plain ViT": not all(_is_plain_block(block) for block in vit.blocks),
    }
    if unsupported := next((reason for reason, is_true in checks.items() if is_true), ""):
        return unsupported
    blocks: list[Any] = list(vit.blocks)
    last_norms: list[Any] = [norm for norm in (vit.norm, vit.fc_norm) if not isinstance(norm, nn.Identity)]
    norms = [*last_norms, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    if any(not isinstance(norm, nn.LayerNorm) or norm.bias is None for norm in norms):
        return f"its norms are {type(norms[0]).__name__}, not LayerNorm with weight and bias"
    if len(eps := {norm.eps for norm in norms}) > 1:
        return f"its norms have different eps, {', '.join(map(str, sorted(eps)))}"
    if other := next((block.mlp.act for block in blocks if not _is_gelu(block.mlp.act)), None):
        return f"its activation is {type(other).__name__}, not the exact GELU"
    biases = [(block.attn.proj.bias, block.mlp.fc1.bias, block.mlp.fc2.bias) for block in blocks]
    return (
        "its projections have no biases"
        if any(bias is None for block_biases in biases for bias in block_biases)
        else ""
    )


def _is_plain_block(block: nn.Module) -> bool:
    return type(block) is Block and type(block.attn).__name__ == "Attention" and type(block.mlp) is Mlp


def _is_gelu(act: nn.Module) -> bool:
    return isinstance(act, nn.GELU) and act.approximate == "none"
