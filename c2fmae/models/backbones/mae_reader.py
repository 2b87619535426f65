"""Files of MAE's official code: pre-trained, with or without the decoder, and fine-tuned.

Its names are timm's, so whatever bare file has these of a plain ViT is read here too.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.specs import BackboneSpec, Pooling
from c2fmae.core.weight_file import WeightFile
from c2fmae.models.backbones.assemble import SourceContents
from c2fmae.models.backbones.infer import (
    count_blocks,
    default_normalisation,
    infer_encoder_config,
    infer_image_size,
    infer_num_heads,
    infer_patch_embed,
)

PATCH_KERNEL = "patch_embed.proj.weight"

_REQUIRED_NAMES = (PATCH_KERNEL, "cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")

_UNSUPPORTED_PREFIXES = {
    "dist_token": "is a distilled DeiT, whose second token a plain ViT has not",
    "layers.0.blocks.": "is a Swin Transformer: windows and stages are no plain ViT",
    "blocks.0.attn.relative_position": "adds positions in its attention, as BEiT does, which a plain ViT does not",
    "rel_pos_bias.": "adds positions in its attention, as BEiT does, which a plain ViT does not",
    "visual.": "is CLIP, photos and texts. Give timm:NAME@FILE, by the name that timm has for its ViT",
    "text_model.": "is CLIP, photos and texts. Give timm:NAME@FILE, by the name that timm has for its ViT",
    "conv1.": "is a convolutional network, not a plain ViT",
    "stem.": "is a convolutional network, not a plain ViT",
    "stages.": "is built in stages, as ConvNeXt and others, which a plain ViT is not",
    "embeddings.": "has the names of Hugging Face or of c2fmae. Give the folder that has its config.json",
    "vit.": "has the names of Hugging Face. Give the folder that has its config.json",
}


def check_plain_vit(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is not a plain ViT under timm's names, with the reason."""
    for mark, reason in _UNSUPPORTED_PREFIXES.items():
        if any(name.startswith(mark) for name in tensors):
            raise UserError(f"{source}: {reason}")
    if missing := [name for name in _REQUIRED_NAMES if name not in tensors]:
        raise UserError(
            f"{source}: is no plain ViT under the names of MAE or timm: it lacks {missing[0]}. "
            "Where timm knows it, give timm:NAME@FILE"
        )


def read_mae(
    source: str, weights: WeightFile, *, image_size: Sequence[int] | None = None, num_heads: int | None = None
) -> SourceContents:
    """Return what a file of MAE holds of its ViT."""
    tensors = weights.tensors
    check_plain_vit(source, tensors)
    width, channels, patch = infer_patch_embed(source, PATCH_KERNEL, tensors[PATCH_KERNEL])
    heads, notes = infer_num_heads(width, num_heads)
    encoder = infer_encoder_config(
        source,
        width=width,
        depth=count_blocks(tensors, "blocks."),
        patch=patch,
        mlp_dim=len(tensors["blocks.0.mlp.fc1.weight"]),
        num_heads=heads,
    )
    has_fc_norm = "fc_norm.weight" in tensors and "norm.weight" not in tensors
    is_classifier = "head.weight" in tensors and not has_fc_norm
    pool: Pooling = "cls" if is_classifier else "mean"
    if "decoder_embed.weight" not in tensors and not has_fc_norm:
        notes.append("it does not say how photos are standardised: by ImageNet's mean and deviation, as in MAE")
    spec = BackboneSpec.from_dict(
        {
            "encoder": encoder,
            "image_size": image_size or infer_image_size(source, tensors["pos_embed"].shape[1] - 1, patch),
            "channels": {"rgb": channels},
            "pool": pool,
            "has_fc_norm": has_fc_norm,
            **default_normalisation(channels),
        },
        source=source,
    )
    return SourceContents(
        source=source, spec=spec, tensors=tensors, notes=[*weights.notes, *notes], classifier_info={"crop": 0.875}
    )
