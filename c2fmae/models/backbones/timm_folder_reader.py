"""Reader of directories as timm saves them for model hubs: weights, and a config.json with an architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.weight_file import read_weight_file
from c2fmae.models.backbones.assemble import SourceContents
from c2fmae.models.backbones.export_reader import CONFIG_FILE, WEIGHTS_FILE
from c2fmae.models.backbones.model_size import check_model_size
from c2fmae.models.backbones.timm_reader import (
    has_supported_pooling,
    match_norm_placement,
    parse_timm_labels,
    pooling_notes,
    spec_from_vit,
)
from c2fmae.models.encoder import create_vit

_TIMM_TO_ENCODER = {
    "patch_size": "patch_size",
    "embed_dim": "dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
}
"""From arguments of timm to fields of `EncoderConfig`."""


class TimmModelArgs(Config):
    """The supported arguments of a plain ViT in timm."""

    img_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    patch_size: PositiveInt | None = None
    embed_dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    in_chans: PositiveInt | None = None
    global_pool: Literal["token", "avg"] | None = None
    fc_norm: bool | None = None
    pool_include_prefix: Literal[False] | None = None
    num_classes: int | None = None
    """Accepted and ignored: the number of classes is that of the head."""


class TimmPretrainedConfig(Config):
    """The options of timm's `pretrained_cfg` that are used: image size, standardisation and crop."""

    input_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: Annotated[float, Field(gt=0)] | None = None


class TimmFolderConfig(Config):
    """The keys of timm's config.json that are used."""

    architecture: str
    global_pool: str | None = None
    """Pooling of the saved ViT; `model_args` takes precedence."""
    model_args: TimmModelArgs = TimmModelArgs()
    pretrained_cfg: TimmPretrainedConfig = TimmPretrainedConfig()
    label_names: tuple[str, ...] | dict[Annotated[int, Field(ge=0)], str] | None = None
    label_descriptions: dict[str, str] | None = None


def read_timm_folder(folder: Path, config: Mapping[str, Any]) -> SourceContents:
    """Return the contents of a directory saved by timm."""
    source = str(folder / CONFIG_FILE)
    parsed = TimmFolderConfig.from_dict(_select_known_keys(config), source=source)
    args = parsed.model_args
    pooling_args = {
        "global_pool": args.global_pool or parsed.global_pool,
        "pool_include_prefix": args.pool_include_prefix,
    }
    pooling: dict[str, Any] = {key: value for key, value in pooling_args.items() if value is not None}
    with torch.device("meta"):  # only its attributes are read
        default_vit = create_vit(parsed.architecture, image_size=None, fc_norm=args.fc_norm, **pooling)
    weights, spec = read_weight_file(folder), _build_spec(default_vit, parsed, source)
    if args.fc_norm is None and args.global_pool is None:
        spec = match_norm_placement(spec, weights.tensors)
    check_model_size(source, spec, weights.tensors, lambda vit: vit, WEIGHTS_FILE)
    notes = [*weights.notes, *pooling_notes(default_vit, spec)]
    default_config: Any = default_vit.pretrained_cfg
    labels = parse_timm_labels(parsed.label_names, parsed.label_descriptions)
    return SourceContents(
        source=str(folder),
        spec=spec,
        tensors=weights.tensors,
        notes=notes,
        classifier_info={"crop": parsed.pretrained_cfg.crop_pct or default_config["crop_pct"], "labels": labels},
        has_supported_pooling=has_supported_pooling(default_vit),
    )


def _build_spec(default_vit: VisionTransformer, parsed: TimmFolderConfig, source: str) -> BackboneSpec:
    args, data = parsed.model_args, parsed.pretrained_cfg
    default_spec = spec_from_vit(default_vit, parsed.architecture)
    channels, *size = data.input_size or (default_spec.channels["rgb"], *default_spec.image_size)
    image_size = args.img_size or size
    shape = {ours: value for theirs, ours in _TIMM_TO_ENCODER.items() if (value := getattr(args, theirs)) is not None}
    return BackboneSpec.from_dict(
        {
            **default_spec.model_dump(),
            "encoder": {**default_spec.encoder.model_dump(), **shape},
            "image_size": (image_size, image_size) if isinstance(image_size, int) else image_size,
            "channels": {"rgb": args.in_chans or channels},
            "mean": data.mean or default_spec.mean,
            "std": data.std or default_spec.std,
        },
        source=source,
    )


def _select_known_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the used keys of a config, with all of model_args: unknown arguments change the ViT, and are errors."""
    known = {key: config[key] for key in TimmFolderConfig.model_fields if config.get(key) is not None}
    data = known.get("pretrained_cfg", config)  # older versions of timm have no pretrained_cfg
    if isinstance(data, Mapping):
        known["pretrained_cfg"] = {key: data[key] for key in TimmPretrainedConfig.model_fields if key in data}
    return known
