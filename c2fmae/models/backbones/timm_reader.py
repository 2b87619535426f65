"""Reader of plain ViTs of timm by name, with weights from a file or downloaded by timm."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo, is_wnid
from c2fmae.core.specs import BackboneSpec, EncoderConfig, Pooling
from c2fmae.core.weight_file import read_weight_file
from c2fmae.models.backbones.assemble import SourceContents
from c2fmae.models.encoder import create_vit

TIMM_PREFIX = "timm:"

_POOLING_FROM_TIMM: dict[str, Pooling] = {"token": "cls", "avg": "mean"}


def read_timm(source: str, *, image_size: Sequence[int] | None = None) -> SourceContents:
    """Return the contents of `timm:NAME@FILE`, or of `timm:NAME`, whose weights timm downloads."""
    name, _, file = source.removeprefix(TIMM_PREFIX).partition("@")
    vit = create_vit(name, image_size=image_size, fc_norm=None)
    config: Any = vit.pretrained_cfg
    spec = spec_from_vit(vit, name)
    notes = pooling_notes(vit, spec)
    labels = parse_timm_labels(config.get("label_names"), config.get("label_descriptions"))
    head: dict[str, Any] = {
        "classifier_info": {"crop": config["crop_pct"], "labels": labels},
        "has_supported_pooling": has_supported_pooling(vit),
    }
    if file:
        weights = read_weight_file(file)
        tensors, resized = _convert_to_timm_names(file, weights.tensors, vit)
        spec = match_norm_placement(spec, tensors)
        return SourceContents(
            source=source, spec=spec, tensors=tensors, resized=resized, notes=[*weights.notes, *notes], **head
        )
    try:
        pretrained = timm.create_model(name, pretrained=True)
    except Exception as error:  # downloads raise many types
        raise UserError(
            f"{source}: cannot be downloaded: {' '.join(str(error).split())}. If you have a file of its weights, "
            f"use timm:{name}@FILE"
        ) from error
    return SourceContents(source=source, spec=spec, tensors=pretrained.state_dict(), notes=notes, **head)


def spec_from_vit(vit: VisionTransformer, name: str) -> BackboneSpec:
    """Return the spec of a timm ViT of this name."""
    config: Any = vit.pretrained_cfg
    pool = _POOLING_FROM_TIMM.get(vit.global_pool, "mean")
    return BackboneSpec(
        encoder=EncoderConfig(name=name, has_norm=True, keep_positions=True),
        image_size=vit.patch_embed.img_size,
        channels={"rgb": vit.patch_embed.proj.in_channels},
        mean=config["mean"],
        std=config["std"],
        pool=pool if vit.cls_token is not None else "mean",
        has_fc_norm=type(vit.fc_norm).__name__ != "Identity",
    )


def has_supported_pooling(vit: VisionTransformer) -> bool:
    """Return whether timm pools as a backbone does: the class token, or the mean of the patch tokens."""
    return vit.global_pool == "token" or (vit.global_pool == "avg" and not vit.pool_include_prefix)


def parse_timm_labels(
    names: Sequence[str] | Mapping[Any, str] | None, descriptions: Mapping[str, str] | None
) -> list[LabelInfo | None] | None:
    """Return the labels of timm's label names, by logit; WordNet ids get their descriptions as names.

    >>> [label.wnid for label in parse_timm_labels(["n01440764", "cat"], {"n01440764": "tench"})]
    ['n01440764', None]
    """
    if not names:
        return None
    by_index = (
        {int(index): name for index, name in names.items()} if isinstance(names, Mapping) else dict(enumerate(names))
    )
    ordered_names = [by_index.get(index) for index in range(max(by_index) + 1)]
    return [_label_info(name, (descriptions or {}).get(name, name)) if name else None for name in ordered_names]


def _label_info(name: str, description: str) -> LabelInfo:
    values = {"name": description, "wnid": name if is_wnid(name) else None}
    return LabelInfo.from_dict(values, source=f"label {name!r}")


def pooling_notes(vit: VisionTransformer, spec: BackboneSpec) -> list[str]:
    """Return a note if timm pools in a way that a backbone does not support."""
    if has_supported_pooling(vit):
        return []
    timm_pooling = "the mean of all tokens" if vit.global_pool == "avg" else vit.global_pool
    return [f"its pooling in timm ({timm_pooling}) is not supported, {spec.pool} is used instead"]


def _convert_to_timm_names(
    file: str, tensors: Mapping[str, Tensor], vit: VisionTransformer
) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """Return tensors under timm's names, and descriptions of those that timm resized."""
    kernel = tensors.get("patch_embed.proj.weight")
    is_dinov2 = "mask_token" in tensors and "decoder_embed.weight" not in tensors
    is_native = kernel is not None and kernel.ndim == 4 and "blocks.0.gamma_1" not in tensors and not is_dinov2
    if is_native and "blocks.0.norm1.weight" in tensors:
        return tensors, {}
    try:
        renamed = checkpoint_filter_fn(dict(tensors), vit, adapt_layer_scale=True)
    except Exception as error:  # names of a codebase that timm does not convert
        raise UserError(
            f"{file}: cannot be converted to timm's names: {' '.join(str(error).split())}. Use weights of this model"
        ) from error
    old_positions = next(
        (tensor for name, tensor in tensors.items() if "pos" in name and tensor.shape[-1:] == (vit.embed_dim,)), None
    )
    new_positions = renamed.get("pos_embed")
    if old_positions is None or new_positions is None or old_positions.numel() == new_positions.numel():
        return renamed, {}
    return renamed, {
        "pos_embed": f"{old_positions.numel() // vit.embed_dim} → {new_positions.shape[1]} positions, by timm"
    }


def match_norm_placement(spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> BackboneSpec:
    """Return the spec with the norm before or after pooling as in the file; fine-tuning may have moved it."""
    has_fc_norm = "fc_norm.weight" in tensors
    if has_fc_norm == spec.has_fc_norm or has_fc_norm == ("norm.weight" in tensors):
        return spec
    return spec.model_copy(update={"has_fc_norm": has_fc_norm, "pool": "mean" if has_fc_norm else spec.pool})
