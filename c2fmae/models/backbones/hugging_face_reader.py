"""Folders of Hugging Face's ViT and ViTMAE, read without their library."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.core.labels import LabelInfo
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.weight_file import read_weight_file
from c2fmae.models.backbones.assemble import HEAD_PREFIX, SourceContents
from c2fmae.models.backbones.infer import count_blocks, default_normalisation, infer_encoder_config, infer_patch_embed

_UNSUPPORTED_MODELS = {
    "deit": "has a second, distilled token, which a plain ViT has not",
    "swin": "has windows and stages, which a plain ViT has not",
    "swinv2": "has windows and stages, which a plain ViT has not",
    "beit": "adds positions in its attention, which a plain ViT does not",
    "clip": "is made of two models, for photos and for texts",
    "convnext": "is a convolutional network",
    "resnet": "is a convolutional network",
}

_UNUSED_PREFIXES = ("pooler.", "lm_head.", "embeddings.mask_token", "decoder.")

_RENAMES = (
    (r"^decoder\.decoder_(?:layers|encoder\.layer)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", HEAD_PREFIX),
    (r"\.attention\.(?:attention\.(query|key|value)|([qkv])_proj)\.", lambda m: f".attn.{(m[1] or m[2])[0]}."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
"""Its names, those of older versions too, in the words of timm, and of MAE for the decoder."""

POOLING_KEY, CROP_KEY = "c2fmae_pool", "c2fmae_crop"
"""Where our exports say how a photo's tokens become one vector, and how much of a photo a classifier is shown: for
these transformers has no word."""
UNNAMED_LABEL = "LABEL_{}"
"""What it calls a class that nobody named."""


def read_hugging_face_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json."""
    return read_json(folder / "config.json")


def read_hugging_face(folder: Path, config: Mapping[str, Any]) -> SourceContents:
    """Return what a folder of a ViT or ViTMAE holds; a decoder comes along under MAE's names."""
    kind = config.get("model_type")
    if kind not in ("vit", "vit_mae"):
        why = _UNSUPPORTED_MODELS.get(str(kind), "is not among what is read: vit and vit_mae")
        raise UserError(f"{folder}: model_type {kind!r} {why}. Where timm knows it, give timm:NAME@FILE")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder}: its activation is {config['hidden_act']!r}. Only 'gelu' is read")
    weights = read_weight_file(folder)
    tensors, unused = _rename_tensors(weights.tensors, with_decoder=kind == "vit_mae")
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise UserError(f"{folder}: lacks {name}, in timm's words, which a ViT has")
    width, channels, patch = infer_patch_embed(
        str(folder), "its projection of patches", tensors["patch_embed.proj.weight"]
    )
    size, depth = _read_size(folder, config, "image_size"), count_blocks(tensors, "blocks.")
    num_positions = 1 + (size[0] // patch) * (size[1] // patch)
    found_counts = {"blocks": depth, "positions": tensors["pos_embed"].shape[1]}
    for what, expected_count in {
        "blocks": _read_int(folder, config, "num_hidden_layers"),
        "positions": num_positions,
    }.items():
        if expected_count != found_counts[what]:
            raise UserError(
                f"{folder}: config.json asks for {expected_count} {what}, but the weights have {found_counts[what]}"
            )
    encoder = infer_encoder_config(
        str(folder),
        width=width,
        depth=depth,
        patch=patch,
        mlp_dim=len(tensors["blocks.0.mlp.fc1.weight"]),
        num_heads=_read_int(folder, config, "num_attention_heads"),
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )
    values, notes = _read_normalisation(folder, is_mae=kind == "vit_mae", channels=channels)
    spec = BackboneSpec.from_dict(
        {
            "encoder": encoder,
            "image_size": size,
            "channels": {"rgb": channels},
            "pool": _read_pooling(config, tensors),
            **values,
        },
        source=str(folder),
    )
    return SourceContents(
        source=str(folder),
        spec=spec,
        tensors=tensors,
        pos_embed_image_size=size,
        unused=unused,
        notes=[*weights.notes, *notes],
        classifier_info={"crop": config.get(CROP_KEY, 1.0), "labels": _read_labels(folder, config)},
    )


def _read_pooling(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    if f"{HEAD_PREFIX}weight" in tensors:  # its classifiers read the global token, whatever they began with was read by
        return "cls"
    return str(config.get(POOLING_KEY, "mean" if config["model_type"] == "vit_mae" else "cls"))


def _read_labels(folder: Path, config: Mapping[str, Any]) -> list[LabelInfo | None] | None:
    """Return what the classes are called, by logit; what is only numbered has no name."""
    id_to_label = config.get("id2label")
    if id_to_label is None:
        return None
    try:
        names = {int(index): str(name) for index, name in id_to_label.items()}
        in_order = [names[index] for index in range(len(names))]
    except (AttributeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: id2label: expected a name for each of 0, 1, 2, …") from error
    return [
        None if name == UNNAMED_LABEL.format(index) else LabelInfo(name=name) for index, name in enumerate(in_order)
    ]


def _rename_tensors(
    source_tensors: Mapping[str, Tensor], *, with_decoder: bool
) -> tuple[dict[str, Tensor], Counter[str]]:
    tensors, unused = {}, Counter[str]()
    for full, tensor in source_tensors.items():
        name = full.removeprefix("vit.")
        if name.startswith(_UNUSED_PREFIXES) and not (with_decoder and name.startswith("decoder.")):
            unused[name.rpartition(".")[0].partition(".")[0]] += 1
            continue
        for pattern, word in _RENAMES:
            name = re.sub(pattern, word, name)
        tensors[name] = tensor
    for first in [name for name in tensors if ".attn.q." in name]:
        parts = [first.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in tensors for part in parts):
            tensors[first.replace(".attn.q.", ".attn.qkv.")] = torch.cat([tensors.pop(part) for part in parts])
    return tensors, unused


def _read_normalisation(folder: Path, *, is_mae: bool, channels: int) -> tuple[dict[str, Any], list[str]]:
    """Return mean and deviation of photos, and a note where nobody says them."""
    try:
        processor_config = read_json(folder / "preprocessor_config.json")
        return {"mean": processor_config["image_mean"], "std": processor_config["image_std"]}, []
    except (UserError, KeyError):
        pass
    if is_mae or channels != 3:
        return default_normalisation(channels), ["it does not say how photos are standardised: as in MAE"]
    halves = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return halves, ["it does not say how photos are standardised: to -1 … 1, as Hugging Face's ViTs usually"]


def _read_int(folder: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int):
        raise UserError(f"{folder / 'config.json'}: {name}: expected a number, got {value!r}")
    return value


def _read_size(folder: Path, config: Mapping[str, Any], name: str) -> tuple[int, int]:
    value = config.get(name)
    match value if isinstance(value, list) else [value, value]:
        case [int(height), int(width)]:
            return height, width
    raise UserError(f"{folder / 'config.json'}: {name}: expected height and width, got {value!r}")
