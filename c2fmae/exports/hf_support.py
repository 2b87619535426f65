"""The check whether transformers' `ViTModel`, which has one fixed architecture, can express a timm ViT."""

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from c2fmae.exports.plain_vit import not_plain_vit_reason


def hf_unsupported_reason(vit: VisionTransformer) -> str:
    """Return the first feature of a ViT that transformers' `ViTModel` lacks; empty if it can express the ViT."""
    if vit.num_classes > 0 and vit.global_pool != "token":
        return "its head takes the mean of the patch tokens instead of the class token"
    if isinstance(vit.norm, nn.Identity):
        return "its last norm comes after pooling"
    return not_plain_vit_reason(vit)
