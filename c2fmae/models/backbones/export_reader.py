"""Reader of exported directories: tensors under c2fmae's names, and a config that describes them."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from c2fmae import __version__
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.weight_file import read_weight_file
from c2fmae.models.backbones.assemble import SourceContents, split_c2fmae_tensors
from c2fmae.models.backbones.backbone import wrap_vit
from c2fmae.models.backbones.model_size import check_model_size

BACKBONE_FORMAT, AUTOENCODER_FORMAT, CLASSIFIER_FORMAT = "c2fmae-backbone", "c2fmae-autoencoder", "c2fmae-classifier"
EXPORT_VERSION = 1
"""Version of the config. After a change, older versions must still be read."""
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class ExportConfig(Config):
    """The config of an exported directory."""

    format: Literal["c2fmae-backbone", "c2fmae-autoencoder", "c2fmae-classifier"] = "c2fmae-backbone"
    version: int = EXPORT_VERSION
    made_by: str = f"c2fmae {__version__}"
    spec: BackboneSpec
    method: dict[str, Any] | None = None
    """The method config of an autoencoder, from which it is rebuilt."""
    classifier: dict[str, Any] | None = None
    """Labels and crop of a classifier."""


def read_export(path: Path) -> SourceContents:
    """Return the encoder of an exported directory, and the head of a classifier."""
    config, tensors = read_export_folder(path)
    backbone_tensors, unused = split_c2fmae_tensors(tensors)
    check_model_size(
        str(path / CONFIG_FILE), config.spec, backbone_tensors, lambda vit: wrap_vit(vit, config.spec), WEIGHTS_FILE
    )
    notes = [f"exported by {config.made_by}"]
    if not config.spec.encoder.has_norm and not config.spec.has_fc_norm and "encoder.norm.weight" in backbone_tensors:
        notes.append("it was trained without a norm after the last block: it holds one with weight 1 and bias 0")
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
    """Return the config and the tensors of an exported directory."""
    file = path / CONFIG_FILE
    values = read_json(file, fix="Export it again")
    if values.get("format") not in (BACKBONE_FORMAT, AUTOENCODER_FORMAT, CLASSIFIER_FORMAT):
        raise UserError(
            f"{file}: format: expected an export of c2fmae, got {str(values.get('format'))[:40]!r}. Export it again"
        )
    version = values.get("version")
    if isinstance(version, int) and version > EXPORT_VERSION:
        raise UserError(
            f"{file}: has version {version} of a newer c2fmae, this one reads {EXPORT_VERSION}. Update c2fmae"
        )
    if version != EXPORT_VERSION:
        raise UserError(f"{file}: version: expected {EXPORT_VERSION}, got {str(version)[:40]!r}. Export it again")
    return ExportConfig.from_dict(values, source=str(file)), read_weight_file(path / WEIGHTS_FILE).tensors
