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
from c2fmae.core.weight_file import open_weights
from c2fmae.models.backbones.assemble import HEAD, Found
from c2fmae.models.backbones.infer import depth_of, encoder_of, patch_of, statistics
from c2fmae.models.backbones.spec import BackboneSpec

_REFUSED = {
    "deit": "has a second, distilled token, which a plain ViT has not",
    "swin": "has windows and stages, which a plain ViT has not",
    "swinv2": "has windows and stages, which a plain ViT has not",
    "beit": "adds positions in its attention, which a plain ViT does not",
    "clip": "is made of two models, for photos and for texts",
    "convnext": "is a convolutional network",
    "resnet": "is a convolutional network",
}

_LEFT = ("pooler.", "lm_head.", "embeddings.mask_token", "decoder.")

_WORDS = (
    (r"^decoder\.decoder_(?:layers|encoder\.layer)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", HEAD),
    (r"\.attention\.(?:attention\.(query|key|value)|([qkv])_proj)\.", lambda m: f".attn.{(m[1] or m[2])[0]}."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
"""Its names, those of older versions too, in the words of timm, and of MAE for the decoder."""

POOL, CROP = "c2fmae_pool", "c2fmae_crop"
"""Where our exports say how a photo's tokens become one vector, and how much of a photo a classifier is shown: for
these transformers has no word."""
NUMBERED = "LABEL_{}"
"""What it calls a class that nobody named."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json."""
    return read_json(folder / "config.json")


def read_hugging_face(folder: Path, config: Mapping[str, Any]) -> Found:
    """Return what a folder of a ViT or ViTMAE holds; a decoder comes along under MAE's names."""
    kind = config.get("model_type")
    if kind not in ("vit", "vit_mae"):
        why = _REFUSED.get(str(kind), "is not among what is read: vit and vit_mae")
        raise UserError(f"{folder}: model_type {kind!r} {why}. Where timm knows it, give timm:NAME@FILE")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder}: its activation is {config['hidden_act']!r}. Only 'gelu' is read")
    weights = open_weights(folder)
    tensors, left = _renamed(weights.tensors, keeps_decoder=kind == "vit_mae")
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise UserError(f"{folder}: lacks {name}, in timm's words, which a ViT has")
    width, channels, patch = patch_of(str(folder), "its projection of patches", tensors["patch_embed.proj.weight"])
    size, depth = _pair(folder, config, "image_size"), depth_of(tensors, "blocks.")
    places = 1 + (size[0] // patch) * (size[1] // patch)
    held = {"blocks": depth, "positions": tensors["pos_embed"].shape[1]}
    for what, asked in {"blocks": _number(folder, config, "num_hidden_layers"), "positions": places}.items():
        if asked != held[what]:
            raise UserError(f"{folder}: config.json asks for {asked} {what}, but the weights have {held[what]}")
    encoder = encoder_of(
        str(folder),
        width=width,
        depth=depth,
        patch=patch,
        hidden=len(tensors["blocks.0.mlp.fc1.weight"]),
        num_heads=_number(folder, config, "num_attention_heads"),
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )
    values, notes = _statistics(folder, is_mae=kind == "vit_mae", channels=channels)
    spec = BackboneSpec.read(
        {
            "encoder": encoder,
            "image_size": size,
            "channels": {"rgb": channels},
            "pool": _pool(config, tensors),
            **values,
        },
        source=str(folder),
    )
    return Found(
        source=str(folder),
        spec=spec,
        tensors=tensors,
        table_size=size,
        left=left,
        notes=[*weights.notes, *notes],
        classifier={"crop": config.get(CROP, 1.0), "labels": _labels(folder, config)},
    )


def _pool(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    if f"{HEAD}weight" in tensors:  # its classifiers read the global token, whatever they began with was read by
        return "cls"
    return str(config.get(POOL, "mean" if config["model_type"] == "vit_mae" else "cls"))


def _labels(folder: Path, config: Mapping[str, Any]) -> list[LabelInfo | None] | None:
    """Return what the classes are called, by logit; what is only numbered has no name."""
    told = config.get("id2label")
    if told is None:
        return None
    try:
        names = {int(index): str(name) for index, name in told.items()}
        in_order = [names[index] for index in range(len(names))]
    except (AttributeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: id2label: expected a name for each of 0, 1, 2, …") from error
    return [None if name == NUMBERED.format(index) else LabelInfo(name=name) for index, name in enumerate(in_order)]


def _renamed(theirs: Mapping[str, Tensor], *, keeps_decoder: bool) -> tuple[dict[str, Tensor], Counter[str]]:
    tensors, left = {}, Counter[str]()
    for full, tensor in theirs.items():
        name = full.removeprefix("vit.")
        if name.startswith(_LEFT) and not (keeps_decoder and name.startswith("decoder.")):
            left[name.rpartition(".")[0].partition(".")[0]] += 1
            continue
        for pattern, word in _WORDS:
            name = re.sub(pattern, word, name)
        tensors[name] = tensor
    for first in [name for name in tensors if ".attn.q." in name]:
        parts = [first.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in tensors for part in parts):
            tensors[first.replace(".attn.q.", ".attn.qkv.")] = torch.cat([tensors.pop(part) for part in parts])
    return tensors, left


def _statistics(folder: Path, *, is_mae: bool, channels: int) -> tuple[dict[str, Any], list[str]]:
    """Return mean and deviation of photos, and a note where nobody says them."""
    try:
        said = read_json(folder / "preprocessor_config.json")
        return {"mean": said["image_mean"], "std": said["image_std"]}, []
    except (UserError, KeyError):
        pass
    if is_mae or channels != 3:
        return statistics(channels), ["it does not say how photos are standardised: as in MAE"]
    halves = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return halves, ["it does not say how photos are standardised: to -1 … 1, as Hugging Face's ViTs usually"]


def _number(folder: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int):
        raise UserError(f"{folder / 'config.json'}: {name}: expected a number, got {value!r}")
    return value


def _pair(folder: Path, config: Mapping[str, Any], name: str) -> tuple[int, int]:
    value = config.get(name)
    match value if isinstance(value, list) else [value, value]:
        case [int(height), int(width)]:
            return height, width
    raise UserError(f"{folder / 'config.json'}: {name}: expected height and width, got {value!r}")
