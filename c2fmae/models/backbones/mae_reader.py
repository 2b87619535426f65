"""Reader of files of MAE's official code: pre-trained, with or without the decoder, and fine-tuned.

MAE uses timm's names, so other files that only hold a plain ViT's weights under timm's names are read here too.
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
    "dist_token": "is a distilled DeiT, whose distillation token a plain ViT does not have",
    "layers.0.blocks.": "is a Swin Transformer, whose windows and stages a plain ViT does not have",
    "blocks.0.attn.relative_position": "adds positions in its attention, as BEiT does, which a plain ViT does not do",
    "rel_pos_bias.": "adds positions in its attention, as BEiT does, which a plain ViT does not do",
    "visual.": "is CLIP, an image and a text model. Use timm:NAME@FILE with timm's name of its ViT",
    "text_model.": "is CLIP, an image and a text model. Use timm:NAME@FILE with timm's name of its ViT",
    "conv1.": "is a convolutional network, not a plain ViT",
    "stem.": "is a convolutional network, not a plain ViT",
    "stages.": "has stages, as ConvNeXt does, which a plain ViT does not have",
    "embeddings.": "has the names of transformers or of c2fmae. Use the directory with its config.json",
    "vit.": "has the names of transformers. Use the directory with its config.json",
}


def check_plain_vit(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise an error with the reason if the tensors are not those of a plain ViT under timm's names."""
    for prefix, reason in _UNSUPPORTED_PREFIXES.items():
        if any(name.startswith(prefix) for name in tensors):
            raise UserError(f"{source}: {reason}")
    if missing := [name for name in _REQUIRED_NAMES if name not in tensors]:
        raise UserError(
            f"{source}: is not a plain ViT under the names of MAE or timm ({missing[0]} is missing). "
            "If timm has the model, use timm:NAME@FILE"
        )
    for name in ("cls_token", "pos_embed"):
        if tensors[name].ndim != 3 or not tensors[name].numel():
            shape = tuple(tensors[name].shape)
            raise UserError(f"{source}: {name} has shape {shape}, expected 1 × tokens × width. Use a plain ViT")


def read_mae(
    source: str, weights: WeightFile, *, image_size: Sequence[int] | None = None, num_heads: int | None = None
) -> SourceContents:
    """Return the ViT in a file of MAE."""
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
        notes.append("mean and std of images are not stored: those of ImageNet are assumed, as in MAE")
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
    return SourceContents(source=source, spec=spec, tensors=tensors, notes=[*weights.notes, *notes])
