"""Folders that exports wrote: ours, tensors under our names with a config that says what they are, and timm's."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae import __version__
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.weight_file import read_weights
from c2fmae.models.backbones.assemble import Found
from c2fmae.models.backbones.backbone import vit_of, wrap
from c2fmae.models.backbones.spec import BackboneSpec, Count
from c2fmae.models.config import EncoderConfig
from c2fmae.models.encoder import create_vit

BACKBONE, AUTOENCODER = "c2fmae-backbone", "c2fmae-autoencoder"
VERSION = 1
"""Of the config. Whoever changes it reads the old one too."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"

_MOST = 1 << 20  # bytes of a config
_SHAPE = {"embed_dim": "dim"} | {
    name: name for name in ("patch_size", "depth", "num_heads", "mlp_ratio")
}  # timm's, ours
_PARTS = ("embeddings", "encoder", "fc_norm")
_COMPUTED = 1 << 24  # numbers that a model may have and its file not: positions that are computed


class ExportConfig(Config):
    """What an exported folder is."""

    format: Literal["c2fmae-backbone", "c2fmae-autoencoder"] = "c2fmae-backbone"
    version: int = VERSION
    made_by: str = f"c2fmae {__version__}"
    spec: BackboneSpec
    method: dict[str, Any] | None = None
    """Of an autoencoder: what it is trained by, from which it is built again."""


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
    pool_include_prefix: Literal[False] = False
    num_classes: int | None = None


class TimmFolder(Config):
    """What is read of the config in a folder of timm's."""

    architecture: str
    model_args: TimmArgs = TimmArgs()
    pretrained_cfg: dict[str, Any]


def read_export(path: Path) -> Found:
    """Return what an exported folder holds of the encoder."""
    config, tensors = read_folder(path)
    ours = {name: each for name, each in tensors.items() if name.partition(".")[0] in _PARTS}
    check_size(path, lambda: _modules(config.spec), config.spec.encoder.depth, ours)
    left = Counter(name.partition(".")[0] for name in tensors if name not in ours)
    notes = [f"exported by {config.made_by}"]
    if not config.spec.encoder.has_norm and not config.spec.has_fc_norm and "encoder.norm.weight" in ours:
        notes.append("its training had no norm behind the last block: it carries one of scale 1 and shift 0")
    return Found(source=str(path), spec=config.spec, tensors=ours, left=left, notes=notes)


def read_timm_folder(path: Path) -> Found:
    """Return what a folder holds that is laid out as timm's hub has it, ours or another's: under timm's names."""
    file = path / CONFIG
    config = TimmFolder.read(
        {key: each for key, each in _read_json(file).items() if key in TimmFolder.model_fields}, source=str(file)
    )
    args, said, tensors = config.model_args, config.pretrained_cfg, read_weights(path / WEIGHTS)
    shape = {name: each for name in _SHAPE if (each := getattr(args, name)) is not None}
    encoder = EncoderConfig.read(
        {"name": config.architecture, "has_norm": True, "keep_positions": True}
        | {_SHAPE[name]: each for name, each in shape.items()},
        source=str(file),
    )

    def vit() -> VisionTransformer:
        pool: dict[str, Any] = {"global_pool": args.global_pool} if args.global_pool else {}
        channels = args.in_chans or said.get("input_size", (3,))[0]
        size = (args.img_size, args.img_size) if isinstance(args.img_size, int) else args.img_size
        return create_vit(encoder.name, image_size=size, channels=channels, fc_norm=args.fc_norm, **shape, **pool)

    check_size(path, lambda: [vit()], encoder.depth, tensors)
    with torch.device("meta"):
        made: Any = vit()
    values = {
        "encoder": encoder,
        "image_size": made.patch_embed.img_size,
        "channels": {"rgb": made.patch_embed.proj.in_channels},
        "pool": "cls" if made.global_pool == "token" else "mean",
        "has_fc_norm": not isinstance(made.fc_norm, nn.Identity),
    }
    norm = {name: said.get(name, made.pretrained_cfg[name]) for name in ("mean", "std")}
    return Found(source=str(path), spec=BackboneSpec.read({**values, **norm}, source=str(file)), tensors=tensors)


def read_folder(path: Path) -> tuple[ExportConfig, dict[str, Tensor]]:
    """Return the config of an exported folder, and its tensors."""
    file = path / CONFIG
    values = _read_json(file)
    if values.get("format") not in (BACKBONE, AUTOENCODER):
        raise UserError(f"{file}: is not of an export of c2fmae: its format is {str(values.get('format'))[:40]!r}")
    version = values.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{file}: was made by a newer c2fmae: it has version {version}, and this one reads {VERSION}. "
            "Install the newer one"
        )
    if version != VERSION:
        raise UserError(f"{file}: version: expected {VERSION}, got {str(version)[:40]!r}. Export it again")
    return ExportConfig.read(values, source=str(file)), read_weights(path / WEIGHTS)


def check_size(
    path: Path, make: Callable[[], Sequence[nn.Module]], depth: int | None, tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a config whose modules are much more than its file holds, before anything of it takes memory."""
    held = sum(each.numel() for each in tensors.values())
    if (depth or 0) <= len(tensors):
        with torch.device("meta"):  # shapes alone
            asked = sum(each.numel() for each in nn.ModuleList(make()).parameters())
        if asked <= held + _COMPUTED:
            return
        what = f"a model of {asked:,} numbers, and {WEIGHTS} holds {held:,}"
    else:
        what = f"{depth:,} blocks, and {WEIGHTS} holds {len(tensors):,} tensors"
    raise UserError(f"{path / CONFIG}: asks for {what}. It is not of these weights")


def _modules(spec: BackboneSpec) -> list[nn.Module]:
    """Return all that comes into being with a backbone: the ViT too, with positions that may not stay."""
    vit = vit_of(spec)
    return [vit, wrap(vit, spec)]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        size, text = file.stat().st_size, b""
        if size <= _MOST:
            text = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if size > _MOST:
        raise UserError(f"{file}: is no config: it has {size:,} bytes")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected an object with format, version and spec")
    return values
