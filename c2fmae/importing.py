"""Others' pre-trainings as a folder that ours goes on from: a config, and a checkpoint of step 0.

Encoder, decoders and heads become those of our `mae` and `multimae`, which compute the same. What a file lacks is
drawn anew.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from c2fmae.config.method import MethodConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import RunDir
from c2fmae.core.weight_file import read_weight_file
from c2fmae.data import DatasetInfo
from c2fmae.methods import METHODS, build_method
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import backbone_from_c2fmae_names, backbone_from_timm_names
from c2fmae.models.backbones.hugging_face_reader import read_hugging_face, read_hugging_face_config
from c2fmae.models.backbones.mae_decoder import SourceDecoders, convert_mae_decoder
from c2fmae.models.backbones.mae_reader import read_mae
from c2fmae.models.backbones.multimae_decoders import convert_multimae_decoders
from c2fmae.models.backbones.multimae_reader import read_multimae
from c2fmae.pretrain import build_pretraining_metadata

log = logging.getLogger(__name__)

_MAE_MASK_RATIO = 0.75  # of all patches, as in MAE's paper, which is a method's own quarter visible
_NORM_PIX_NOTE = "it does not say whether patches are normalised before they are predicted: they are, as in MAE's best"

P = TypeVar("P", bound=PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """What a source holds, in our words."""

    method: str
    backbone: Backbone
    decoders: SourceDecoders
    settings: Mapping[str, Any]
    """Of the method, where they are not its own."""
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
    """Make a folder of an official file of MAE, or of a Hugging Face ViTMAE's; return what is to be known of it."""
    training_args: Mapping[str, Any]  # of its training, by the same words in both
    if source.is_dir():
        training_args = read_hugging_face_config(source)
        if training_args.get("model_type") == "vit":
            raise UserError(f"{source}: is a ViT, no ViTMAE. Begin with it by: c2fmae pretrain … --init {source}")
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
    """Make a folder of an official file of MultiMAE; return what is to be known of it."""
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
    """Write the folder: the checkpoint, then the config that begins from it."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: is there already. Give another folder")
    log.info(
        "%s", replace(imported.backbone.load_report, unused={})
    )  # decoders are what a backbone, not an import, leaves aside
    tensors, settings, notes = (
        _collect_tensors(imported),
        _method_settings(imported),
        [*imported.notes, *imported.decoders.notes],
    )
    if channels is not None and channels != imported.backbone.spec.channels.get("rgb"):
        notes.append(_change_channels(imported, tensors, settings, channels))
    checkpoint_dir = out.resolve() / "checkpoints" / "step-00000000"
    method = MethodConfig.from_dict(settings, source=imported.backbone.load_report.source)
    config = recipe.model_copy(update={"method": method, "init": str(checkpoint_dir)}).override(overrides)
    initial_state = build_method(config.method, seed=config.training.seed).model.state_dict()
    loaded_tensors = {
        name: each
        for name, each in tensors.items()
        if name in initial_state and each.shape == initial_state[name].shape
    }
    notes.append(
        f"{len(loaded_tensors)} of {len(initial_state)} tensors are from it; drawn anew: "
        f"{_module_names(initial_state.keys() - loaded_tensors.keys())}"
    )
    if unused := tensors.keys() - loaded_tensors.keys():
        notes.append(f"left aside: {_module_names(unused)}")
    save_checkpoint(checkpoint_dir.parent, _build_checkpoint(config, {**initial_state, **loaded_tensors}))
    RunDir(out).write_text("config.yaml", config.to_yaml())
    return notes


def _collect_tensors(imported: ImportedModel) -> dict[str, Tensor]:
    """Return all tensors under our names, without a norm that every backbone has and this one's training had not."""
    has_norm = imported.backbone.spec.encoder.has_norm
    encoder = imported.backbone.state_dict()
    encoder_tensors = {name: each for name, each in encoder.items() if has_norm or not name.startswith("encoder.norm.")}
    return {**encoder_tensors, **imported.decoders.tensors}


def _method_settings(imported: ImportedModel) -> dict[str, Any]:
    """Return the method's settings with what the source says of itself in their place."""
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
    """Make photos of so many channels of those that it knows, in place, and say how."""
    old_channels = imported.backbone.spec.channels.get("rgb")
    if old_channels is None:
        raise UserError(
            f"{imported.backbone.load_report.source}: does not know photos, so that it has no channels to change"
        )
    mean = tensors["embeddings.rgb.proj.weight"].mean(dim=1, keepdim=True)
    # What is alike in all channels gives the same as before.
    tensors["embeddings.rgb.proj.weight"] = (mean * old_channels / channels).repeat(1, channels, 1, 1)
    for name in [name for name in tensors if name.startswith("heads.rgb")]:
        tensors[name] = tensors[name].unflatten(0, (-1, old_channels)).mean(dim=1).repeat_interleave(channels, dim=0)
    settings |= {"channels": {**settings["channels"], "rgb": channels}, "mean": None, "std": None}
    return (
        f"photos of {channels} channels instead of {old_channels}: each is seen and predicted as the mean of "
        f"{old_channels} was; by what "
        "they are standardised is left to the data"
    )


def _build_checkpoint(config: PretrainConfig, weights: Mapping[str, Tensor]) -> Checkpoint:
    metadata = build_pretraining_metadata(config, DatasetInfo(), num_samples=0)
    return Checkpoint(0, {f"model/{name}": each.contiguous() for name, each in weights.items()}, metadata)


def _module_names(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"
