"""A folder as timm pushes it to a hub and saves it beside: weights, and a config.json that names an architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer

from c2fmae.core.config import Config, Count
from c2fmae.core.weight_file import open_weights
from c2fmae.models.backbones.assemble import Found
from c2fmae.models.backbones.backbone import vit_of
from c2fmae.models.backbones.export_reader import CONFIG, check_size
from c2fmae.models.backbones.spec import BackboneSpec
from c2fmae.models.backbones.timm_reader import labels_of, other_pooling, pools_alike, spec_of, with_its_norm
from c2fmae.models.encoder import create_vit

_SHAPE = {
    "patch_size": "patch_size",
    "embed_dim": "dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
}
"""timm's words and ours."""


class TimmArgs(Config):
    """What timm may be told of a plain ViT here besides its name."""

    img_size: Count | tuple[Count, Count] | None = None
    patch_size: Count | None = None
    embed_dim: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    in_chans: Count | None = None
    global_pool: Literal["token", "avg"] | None = None
    fc_norm: bool | None = None
    pool_include_prefix: Literal[False] | None = None
    num_classes: int | None = None


class TimmData(Config):
    """What is read of what timm says of photos."""

    input_size: tuple[Count, Count, Count] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: Annotated[float, Field(gt=0)] | None = None


class TimmFolder(Config):
    """What is read of the config in a folder of timm's."""

    architecture: str
    global_pool: str | None = None
    """Of the ViT that was saved; what model_args say of it counts more."""
    model_args: TimmArgs = TimmArgs()
    pretrained_cfg: TimmData = TimmData()
    label_names: tuple[str, ...] | dict[Annotated[int, Field(ge=0)], str] | None = None
    label_descriptions: dict[str, str] | None = None


def read_timm_folder(folder: Path, config: Mapping[str, Any]) -> Found:
    """Return what a folder of timm's holds."""
    source = str(folder / CONFIG)
    read = TimmFolder.read(_known(config), source=source)
    args = read.model_args
    told = {"global_pool": args.global_pool or read.global_pool, "pool_include_prefix": args.pool_include_prefix}
    pooling: dict[str, Any] = {word: each for word, each in told.items() if each is not None}
    with torch.device("meta"):  # its settings alone
        named = create_vit(read.architecture, image_size=None, fc_norm=args.fc_norm, **pooling)
    weights, spec = open_weights(folder), _spec_of(named, read, source)
    if args.fc_norm is None and args.global_pool is None:
        spec = with_its_norm(spec, weights.tensors)
    check_size(folder, lambda: [vit_of(spec)], spec.encoder.depth, weights.tensors)
    notes = [*weights.notes, *other_pooling(named, spec)]
    usual: Any = named.pretrained_cfg
    labels = labels_of(read.label_names, read.label_descriptions)
    return Found(
        source=str(folder),
        spec=spec,
        tensors=weights.tensors,
        notes=notes,
        classifier={"crop": read.pretrained_cfg.crop_pct or usual["crop_pct"], "labels": labels},
        pools_alike=pools_alike(named),
    )


def _spec_of(named: VisionTransformer, read: TimmFolder, source: str) -> BackboneSpec:
    args, data = read.model_args, read.pretrained_cfg
    usual = spec_of(named, read.architecture)
    channels, *size = data.input_size or (usual.channels["rgb"], *usual.image_size)
    told = args.img_size or size
    shape = {ours: each for theirs, ours in _SHAPE.items() if (each := getattr(args, theirs)) is not None}
    return BackboneSpec.read(
        {
            **usual.model_dump(),
            "encoder": {**usual.encoder.model_dump(), **shape},
            "image_size": (told, told) if isinstance(told, int) else told,
            "channels": {"rgb": args.in_chans or channels},
            "mean": data.mean or usual.mean,
            "std": data.std or usual.std,
        },
        source=source,
    )


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words that are read; all of model_args are, as each of them makes another ViT."""
    known = {word: config[word] for word in TimmFolder.model_fields if config.get(word) is not None}
    data = known.get("pretrained_cfg", config)  # timm's older folders have no parts
    if isinstance(data, Mapping):
        known["pretrained_cfg"] = {word: data[word] for word in TimmData.model_fields if word in data}
    return known
