"""The size of a ViT, by which recipes are chosen."""

from c2fmae.core.specs import BackboneSpec


def read_vit_dim(spec: BackboneSpec) -> int:
    """Return the width of a ViT."""
    import torch

    from c2fmae.models.backbones.backbone import vit_from_spec

    with torch.device("meta"):
        return int(vit_from_spec(spec).embed_dim)


def is_small_vit(spec: BackboneSpec) -> bool:
    """Return whether a ViT is smaller than a ViT-Ti, or was trained on images below 128 pixels."""
    return min(spec.image_size) < 128 or read_vit_dim(spec) < 192
