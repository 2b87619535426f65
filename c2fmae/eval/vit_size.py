"""The size of a ViT, by which recipes are chosen."""

from typing import TYPE_CHECKING

from c2fmae.core.specs import BackboneSpec

if TYPE_CHECKING:
    import timm.models.vision_transformer


def read_vit_dim(spec: BackboneSpec) -> int:
    """Return the width of a ViT."""
    return int(_create_meta_vit(spec).embed_dim)


def read_vit_depth(spec: BackboneSpec) -> int:
    """Return the number of blocks of a ViT."""
    return len(_create_meta_vit(spec).blocks)


def is_small_vit(spec: BackboneSpec) -> bool:
    """Return whether a ViT is smaller than a ViT-Ti, or was trained on images below 128 pixels."""
    return min(spec.image_size) < 128 or read_vit_dim(spec) < 192


def _create_meta_vit(spec: BackboneSpec) -> "timm.models.vision_transformer.VisionTransformer":
    import torch

    from c2fmae.models.backbones.backbone import vit_from_spec

    with torch.device("meta"):
        return vit_from_spec(spec)
