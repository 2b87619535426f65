"""Import of official MAE and MultiMAE files as a run directory to continue from: a config and a checkpoint of step 0.

Encoder, decoders and heads are converted to those of the methods `mae` and `multimae`, which compute the same outputs.
Tensors that a file lacks are newly initialised.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import RunDir
from c2fmae.core.weight_file import read_weight_file
from c2fmae.data import DatasetInfo
from c2fmae.methods import METHODS, build_method
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import backbone_from_c2fmae_names, backbone_from_timm_names
from c2fmae.models.backbones.channels import change_image_channels
from c2fmae.models.backbones.hugging_face_reader import read_hugging_face, read_hugging_face_config
from c2fmae.models.backbones.mae_decoder import SourceDecoders, convert_mae_decoder
from c2fmae.models.backbones.mae_reader import read_mae
from c2fmae.models.backbones.multimae_decoders import convert_multimae_decoders
from c2fmae.models.backbones.multimae_reader import read_multimae
from c2fmae.pretrain import build_pretraining_metadata

log = logging.getLogger(__name__)

_MAE_MASK_RATIO = 0.75  # of MAE's paper: the default of a method with one granularity
_NORM_PIX_NOTE = "whether pixel targets are normalised (norm_pix_loss) is not stored: they are assumed to be"

P = TypeVar("P", bound=PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """The contents of a source, converted."""

    method: str
    backbone: Backbone
    decoders: SourceDecoders
    settings: Mapping[str, Any]
    """Options of the method that differ from its defaults."""
    notes: Sequence[str] = ()


def import_mae(
    source: Path,
    out: Path,
    recipe: P,
    overrides: Iterable[str] = (),
    *,
    channels: int | None = None,
    num_heads: int | None = None,
) -> list[str]:
    """Write a run directory from an official file of MAE, or a ViTMAE of transformers; return notes for the user."""
    training_args: Mapping[str, Any]  # both formats use the same names
    if source.is_dir():
        training_args = read_hugging_face_config(source)
        if training_args.get("model_type") == "vit":
            raise UserError(f"{source}: is a ViT, not a ViTMAE. Start from it with: c2fmae pretrain … --init {source}")
        contents = read_hugging_face(source, training_args)
    else:
        weights = read_weight_file(source)
        training_args, contents = weights.args, read_mae(str(source), weights, num_heads=num_heads)
    is_normalized, ratio = training_args.get("norm_pix_loss", True), training_args.get("mask_ratio", _MAE_MASK_RATIO)
    notes = [] if "norm_pix_loss" in training_args else [f"{_NORM_PIX_NOTE} (method.targets.rgb=[pixels] otherwise)"]
    num_patches = contents.tensors["pos_embed"].shape[1] - 1
    settings = {
        "targets": {"rgb": ["normalized_pixels" if is_normalized else "pixels"]},
        "num_visible": None if ratio == _MAE_MASK_RATIO else int(num_patches * (1 - ratio)),
    }
    decoder = convert_mae_decoder(contents, training_args.get("decoder_num_attention_heads"))
    imported = ImportedModel(
        method="mae", backbone=backbone_from_timm_names(contents), decoders=decoder, settings=settings, notes=notes
    )
    return _write_run_dir(imported, out, recipe, overrides, channels)


def import_multimae(
    source: Path,
    out: Path,
    recipe: P,
    overrides: Iterable[str] = (),
    *,
    channels: int | None = None,
    num_heads: int | None = None,
) -> list[str]:
    """Write a run directory from an official file of MultiMAE; return notes for the user."""
    weights = read_weight_file(source)
    contents = read_multimae(str(source), weights, num_heads=num_heads)
    imported = ImportedModel(
        method="multimae",
        backbone=backbone_from_c2fmae_names(contents),
        decoders=convert_multimae_decoders(str(source), weights.tensors, contents.spec.channels),
        settings={"num_visible": weights.args.get("num_encoded_tokens")},
    )
    return _write_run_dir(imported, out, recipe, overrides, channels)


def _write_run_dir(
    imported: ImportedModel, out: Path, recipe: P, overrides: Iterable[str], channels: int | None
) -> list[str]:
    """Write the checkpoint, then a config that is initialised from it; return notes for the user."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: already exists. Choose another directory")
    log.info("%s", replace(imported.backbone.load_report, unused={}))  # decoders are unused by a backbone only
    tensors, settings, notes = (
        _collect_tensors(imported),
        _method_settings(imported),
        [*imported.notes, *imported.decoders.notes],
    )
    if channels is not None and channels != imported.backbone.spec.channels.get("rgb"):
        notes.append(_change_channels(imported, tensors, settings, channels))
    checkpoint_dir = out.resolve() / "checkpoints" / "step-00000000"
    method = MaskedConfig.from_dict(settings, source=imported.backbone.load_report.source)
    config = recipe.model_copy(update={"method": method, "init": str(checkpoint_dir)}).override(overrides)
    initial_state = build_method(config.masked_method, seed=config.training.seed).model.state_dict()
    loaded_tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if name in initial_state and tensor.shape == initial_state[name].shape
    }
    notes.append(
        f"{len(loaded_tensors)} of {len(initial_state)} tensors were imported; newly initialised: "
        f"{_module_names(initial_state.keys() - loaded_tensors.keys())}"
    )
    if unused := tensors.keys() - loaded_tensors.keys():
        notes.append(f"not used: {_module_names(unused)}")
    save_checkpoint(checkpoint_dir.parent, _build_checkpoint(config, {**initial_state, **loaded_tensors}))
    RunDir(out).write_text("config.yaml", config.to_yaml())
    return notes


def _collect_tensors(imported: ImportedModel) -> dict[str, Tensor]:
    """Return all tensors under c2fmae's names, without the last norm if it was added to the backbone."""
    has_norm = imported.backbone.spec.encoder.has_norm
    tensors = imported.backbone.state_dict()
    encoder = {name: tensor for name, tensor in tensors.items() if has_norm or not name.startswith("encoder.norm.")}
    return {**encoder, **imported.decoders.tensors}


def _method_settings(imported: ImportedModel) -> dict[str, Any]:
    """Return the defaults of the method, overridden by the options of the source."""
    method, spec = METHODS.get(imported.method)(), imported.backbone.spec
    defaults = method.model_dump()
    decoder = defaults["decoder"]
    return {
        **defaults,
        "granularities": list(spec.channels),
        "channels": dict(spec.channels),
        "image_size": spec.image_size,
        "encoder": {**spec.encoder.model_dump(), "has_norm": method.encoder.has_norm},
        "decoder": {**decoder, "options": {**decoder["options"], **imported.decoders.settings}},
        "targets": {**defaults["targets"], **imported.decoders.targets},
        "mean": spec.mean,
        "std": spec.std,
        **imported.settings,
    }


def _change_channels(
    imported: ImportedModel, tensors: dict[str, Tensor], settings: dict[str, Any], channels: int
) -> str:
    """Convert embedding and heads of rgb to another number of channels, in place; return a note for the user."""
    if "rgb" not in imported.backbone.spec.channels:
        raise UserError(
            f"{imported.backbone.load_report.source}: has no rgb embedding, so its channels cannot be changed. "
            "Omit --channels"
        )
    note = change_image_channels(tensors, channels)
    settings |= {"channels": {**settings["channels"], "rgb": channels}, "mean": None, "std": None}
    return f"{note}; mean and std are those of the data"


def _build_checkpoint(config: PretrainConfig, weights: Mapping[str, Tensor]) -> Checkpoint:
    metadata = build_pretraining_metadata(config, DatasetInfo(), num_samples=0)
    return Checkpoint(0, {f"model/{name}": tensor.contiguous() for name, tensor in weights.items()}, metadata)


def _module_names(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"
