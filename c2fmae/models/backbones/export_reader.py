"""Folders that exports wrote: tensors under our names, with a config that says what they are."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from c2fmae import __version__
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.weight_file import read_weights
from c2fmae.models.backbones.assemble import SourceContents
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit

BACKBONE_FORMAT, AUTOENCODER_FORMAT, CLASSIFIER_FORMAT = "c2fmae-backbone", "c2fmae-autoencoder", "c2fmae-classifier"
EXPORT_VERSION = 1
"""Of the config. Whoever changes it reads the old one too."""
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

_BACKBONE_MODULES = ("embeddings", "encoder", "fc_norm", "head")
_MAX_COMPUTED_VALUES = 1 << 24  # numbers that a model may have and its file not: positions that are computed


class ExportConfig(Config):
    """What an exported folder is."""

    format: Literal["c2fmae-backbone", "c2fmae-autoencoder", "c2fmae-classifier"] = "c2fmae-backbone"
    version: int = EXPORT_VERSION
    made_by: str = f"c2fmae {__version__}"
    spec: BackboneSpec
    method: dict[str, Any] | None = None
    """Of an autoencoder: what it is trained by, from which it is built again."""
    classifier: dict[str, Any] | None = None
    """Of a classifier: its labels and crop."""


def read_export(path: Path) -> SourceContents:
    """Return what an exported folder holds of the encoder."""
    config, tensors = read_export_folder(path)
    backbone_tensors = {name: each for name, each in tensors.items() if name.partition(".")[0] in _BACKBONE_MODULES}
    check_model_size(path, lambda: _meta_modules(config.spec), config.spec.encoder.depth, backbone_tensors)
    unused = Counter(name.partition(".")[0] for name in tensors if name not in backbone_tensors)
    notes = [f"exported by {config.made_by}"]
    if not config.spec.encoder.has_norm and not config.spec.has_fc_norm and "encoder.norm.weight" in backbone_tensors:
        notes.append("its training had no norm behind the last block: it carries one of scale 1 and shift 0")
    classifier = config.classifier or {}
    return SourceContents(
        source=str(path),
        spec=config.spec,
        tensors=backbone_tensors,
        unused=unused,
        notes=notes,
        classifier_info=classifier,
    )


def read_export_folder(path: Path) -> tuple[ExportConfig, dict[str, Tensor]]:
    """Return the config of an exported folder, and its tensors."""
    file = path / CONFIG_FILE
    values = read_json(file)
    if values.get("format") not in (BACKBONE_FORMAT, AUTOENCODER_FORMAT, CLASSIFIER_FORMAT):
        raise UserError(f"{file}: is not of an export of c2fmae: its format is {str(values.get('format'))[:40]!r}")
    version = values.get("version")
    if isinstance(version, int) and version > EXPORT_VERSION:
        raise UserError(
            f"{file}: was made by a newer c2fmae: it has version {version}, and this one reads {EXPORT_VERSION}. "
            "Install the newer one"
        )
    if version != EXPORT_VERSION:
        raise UserError(f"{file}: version: expected {EXPORT_VERSION}, got {str(version)[:40]!r}. Export it again")
    return ExportConfig.from_dict(values, source=str(file)), read_weights(path / WEIGHTS_FILE)


def check_model_size(
    path: Path, create_modules: Callable[[], Sequence[nn.Module]], depth: int | None, tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a config whose modules are much more than its file holds, before anything of it takes memory."""
    stored_count = sum(each.numel() for each in tensors.values())
    if (depth or 0) <= len(tensors):
        with torch.device("meta"):  # shapes alone
            model_count = sum(each.numel() for each in nn.ModuleList(create_modules()).parameters())
        if model_count <= stored_count + _MAX_COMPUTED_VALUES:
            return
        what = f"a model of {model_count:,} numbers, and {WEIGHTS_FILE} holds {stored_count:,}"
    else:
        what = f"{depth:,} blocks, and {WEIGHTS_FILE} holds {len(tensors):,} tensors"
    raise UserError(f"{path / CONFIG_FILE}: asks for {what}. It is not of these weights")


def _meta_modules(spec: BackboneSpec) -> list[nn.Module]:
    """Return all that comes into being with a backbone: the ViT too, with positions that may not stay."""
    vit = vit_from_spec(spec)
    return [vit, wrap_vit(vit, spec)]
