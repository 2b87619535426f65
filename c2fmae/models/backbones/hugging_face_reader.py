"""Reader of directories with a ViT or ViTMAE of transformers, which need not be installed."""

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
    "deit": "has a distillation token, which a plain ViT does not have",
    "swin": "has windows and stages, which a plain ViT does not have",
    "swinv2": "has windows and stages, which a plain ViT does not have",
    "beit": "adds positions in its attention, which a plain ViT does not do",
    "clip": "consists of an image model and a text model",
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
"""From names of transformers, older versions included, to those of timm, and of MAE for the decoder."""

POOLING_KEY, CROP_KEY = "c2fmae_pool", "c2fmae_crop"
"""Config keys in which c2fmae's exports store pooling and evaluation crop, which transformers has no options for."""
UNNAMED_LABEL = "LABEL_{}"
"""The name of an unnamed class in transformers."""


def read_hugging_face_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a directory."""
    return read_json(folder / "config.json", fix="Download it again")


def read_hugging_face(folder: Path, config: Mapping[str, Any]) -> SourceContents:
    """Return the contents of a directory with a ViT or ViTMAE; a decoder is included under MAE's names."""
    kind = config.get("model_type")
    if kind not in ("vit", "vit_mae"):
        reason = _UNSUPPORTED_MODELS.get(str(kind), "is not supported (expected vit or vit_mae)")
        raise UserError(f"{folder}: model_type {kind!r} {reason}. If timm has the model, use timm:NAME@FILE")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder}: hidden_act: expected 'gelu', got {config['hidden_act']!r}. Use another model")
    weights = read_weight_file(folder)
    tensors, unused = _rename_tensors(weights.tensors, with_decoder=kind == "vit_mae")
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise UserError(f"{folder}: {name} (timm's name) is missing. Use the weights of a ViT")
    width, channels, patch = infer_patch_embed(
        str(folder), "patch_embed.proj.weight", tensors["patch_embed.proj.weight"]
    )
    size, depth = _read_size(folder, config, "image_size"), count_blocks(tensors, "blocks.")
    num_positions = 1 + (size[0] // patch) * (size[1] // patch)
    counts = {"blocks": depth, "positions": tensors["pos_embed"].shape[1]}
    for item, expected_count in {
        "blocks": _read_int(folder, config, "num_hidden_layers"),
        "positions": num_positions,
    }.items():
        if expected_count != counts[item]:
            raise UserError(
                f"{folder}: config.json describes {expected_count} {item}, but the weights have {counts[item]}. "
                "Use the config of these weights"
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
    if f"{HEAD_PREFIX}weight" in tensors:  # classifiers of transformers read the class token
        return "cls"
    return str(config.get(POOLING_KEY, "mean" if config["model_type"] == "vit_mae" else "cls"))


def _read_labels(folder: Path, config: Mapping[str, Any]) -> list[LabelInfo | None] | None:
    """Return the class names by logit; None for classes with a generated name."""
    id_to_label = config.get("id2label")
    if id_to_label is None:
        return None
    try:
        names = {int(index): str(name) for index, name in id_to_label.items()}
        in_order = [names[index] for index in range(len(names))]
    except (AttributeError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / 'config.json'}: id2label: expected a name for each of 0, 1, 2, …. Fix it"
        ) from error
    return [
        None
        if name == UNNAMED_LABEL.format(index)
        else LabelInfo.from_dict({"name": name}, source=f"{folder / 'config.json'}: id2label")
        for index, name in enumerate(in_order)
    ]


def _rename_tensors(
    source_tensors: Mapping[str, Tensor], *, with_decoder: bool
) -> tuple[dict[str, Tensor], Counter[str]]:
    tensors, unused = {}, Counter[str]()
    for source_name, tensor in source_tensors.items():
        name = source_name.removeprefix("vit.")
        if name.startswith(_UNUSED_PREFIXES) and not (with_decoder and name.startswith("decoder.")):
            unused[name.rpartition(".")[0].partition(".")[0]] += 1
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    for first in [name for name in tensors if ".attn.q." in name]:
        parts = [first.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in tensors for part in parts):
            tensors[first.replace(".attn.q.", ".attn.qkv.")] = torch.cat([tensors.pop(part) for part in parts])
    return tensors, unused


def _read_normalisation(folder: Path, *, is_mae: bool, channels: int) -> tuple[dict[str, Any], list[str]]:
    """Return the mean and standard deviation of images, and a note if they are assumed."""
    try:
        processor_config = read_json(folder / "preprocessor_config.json")
        return {"mean": processor_config["image_mean"], "std": processor_config["image_std"]}, []
    except (UserError, KeyError):
        pass
    if is_mae or channels != 3:
        return default_normalisation(channels), ["mean and std of images are not stored: those of MAE are assumed"]
    defaults = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return defaults, ["mean and std of images are not stored: 0.5 and 0.5 are assumed, as in most ViTs of transformers"]


def _read_int(folder: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int):
        raise UserError(f"{folder / 'config.json'}: {name}: expected an integer, got {value!r}. Fix it")
    return value


def _read_size(folder: Path, config: Mapping[str, Any], name: str) -> tuple[int, int]:
    value = config.get(name)
    match value if isinstance(value, list) else [value, value]:
        case [int(height), int(width)]:
            return height, width
    raise UserError(f"{folder / 'config.json'}: {name}: expected an integer or [height, width], got {value!r}. Fix it")
