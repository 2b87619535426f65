"""A folder as timm pushes it to a hub and saves it beside: weights, and a config.json that names an architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.weight_file import open_weights
from c2fmae.models.backbones.assemble import Found
from c2fmae.models.backbones.backbone import vit_of
from c2fmae.models.backbones.of_export import check_size
from c2fmae.models.backbones.of_timm import spec_of, with_its_norm
from c2fmae.models.backbones.spec import BackboneSpec
from c2fmae.models.encoder import create_vit

_SHAPE = {
    "patch_size": "patch_size",
    "embed_dim": "dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
}
"""timm's words and ours."""

_READ = (*_SHAPE, "img_size", "in_chans", "global_pool", "fc_norm", "pool_include_prefix", "num_classes")


def read_timm_folder(folder: Path, config: Mapping[str, Any]) -> Found:
    """Return what a folder of timm's holds."""
    name, args, cfg = config["architecture"], config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    if not isinstance(name, str) or not isinstance(args, Mapping) or not isinstance(cfg, Mapping):
        raise UserError(f"{folder / 'config.json'}: is not as timm writes it")
    if unknown := sorted(set(args) - set(_READ)):
        raise UserError(f"{folder / 'config.json'}: sets {', '.join(unknown)}, which is not read")
    usual = spec_of(create_vit(name, image_size=None, fc_norm=None), name)
    size, channels = args.get("img_size", cfg.get("input_size", [])[1:] or usual.image_size), args.get("in_chans")
    changes = {ours: args[theirs] for theirs, ours in _SHAPE.items() if theirs in args}
    values = {
        **usual.model_dump(),
        "encoder": {**usual.encoder.model_dump(), **changes},
        "image_size": size if isinstance(size, list | tuple) else (size, size),
        "channels": {"rgb": channels or usual.channels["rgb"]},
        **{key: cfg[key] for key in ("mean", "std") if key in cfg},
    }
    if (pool := args.get("global_pool", config.get("global_pool"))) in ("avg", "token"):
        values["pool"] = "mean" if pool == "avg" else "cls"
    weights = open_weights(folder)
    spec = with_its_norm(BackboneSpec.read(values, source=str(folder / "config.json")), weights.tensors)
    check_size(folder, lambda: [vit_of(spec)], spec.encoder.depth, weights.tensors)
    return Found(source=str(folder), spec=spec, tensors=weights.tensors, notes=weights.notes)
