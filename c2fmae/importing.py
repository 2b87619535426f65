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

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import RunFolder
from c2fmae.core.weight_file import open_weights
from c2fmae.methods import METHODS, MethodConfig, build_method
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import from_our_names, from_timm_names
from c2fmae.models.backbones.hugging_face_reader import read_config, read_hugging_face
from c2fmae.models.backbones.mae_decoder import FoundDecoders, mae_decoder
from c2fmae.models.backbones.mae_reader import read_mae
from c2fmae.models.backbones.multimae_decoders import multimae_decoders
from c2fmae.models.backbones.multimae_reader import read_multimae
from c2fmae.pretrain import PretrainConfig

log = logging.getLogger(__name__)

_HIDDEN = 0.75  # of all patches, as in MAE's paper, which is a method's own quarter visible
_NOT_SAID = "it does not say whether patches are normalised before they are predicted: they are, as in MAE's best"

P = TypeVar("P", bound=PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class Import:
    """What a source holds, in our words."""

    method: str
    backbone: Backbone
    decoders: FoundDecoders
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
    said: Mapping[str, Any]  # of its training, by the same words in both
    if source.is_dir():
        said = read_config(source)
        if said.get("model_type") == "vit":
            raise UserError(f"{source}: is a ViT, no ViTMAE. Begin with it by: c2fmae pretrain … --init {source}")
        found = read_hugging_face(source, said)
    else:
        weights = open_weights(source)
        said, found = weights.args, read_mae(str(source), weights, num_heads=num_heads)
    is_normalized, ratio = said.get("norm_pix_loss", True), said.get("mask_ratio", _HIDDEN)
    notes = [] if "norm_pix_loss" in said else [f"{_NOT_SAID} (method.targets.rgb=[pixels] otherwise)"]
    num_patches = found.tensors["pos_embed"].shape[1] - 1
    settings = {
        "targets": {"rgb": ["normalized_pixels" if is_normalized else "pixels"]},
        "num_visible": None if ratio == _HIDDEN else int(num_patches * (1 - ratio)),
    }
    decoder = mae_decoder(found, said.get("decoder_num_attention_heads"))
    it = Import(method="mae", backbone=from_timm_names(found), decoders=decoder, settings=settings, notes=notes)
    return _write(it, out, recipe, overrides, channels)


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
    weights = open_weights(source)
    found = read_multimae(str(source), weights, num_heads=num_heads)
    it = Import(
        method="multimae",
        backbone=from_our_names(found),
        decoders=multimae_decoders(str(source), weights.tensors, found.spec.channels),
        settings={"num_visible": weights.args.get("num_encoded_tokens")},
    )
    return _write(it, out, recipe, overrides, channels)


def _write(it: Import, out: Path, recipe: P, overrides: Iterable[str], channels: int | None) -> list[str]:
    """Write the folder: the checkpoint, then the config that begins from it."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: is there already. Give another folder")
    log.info("%s", replace(it.backbone.report, left={}))  # decoders are what a backbone, not an import, leaves aside
    tensors, settings, notes = _tensors_of(it), _settings_of(it), [*it.notes, *it.decoders.notes]
    if channels is not None and channels != it.backbone.spec.channels.get("rgb"):
        notes.append(_change_channels(it, tensors, settings, channels))
    place = out.resolve() / "checkpoints" / "step-00000000"
    method = MethodConfig.read(settings, source=it.backbone.report.source)
    config = recipe.model_copy(update={"method": method, "init": str(place)}).override(overrides)
    ours = build_method(config.method, seed=config.training.seed).model.state_dict()
    taken = {name: each for name, each in tensors.items() if name in ours and each.shape == ours[name].shape}
    notes.append(f"{len(taken)} of {len(ours)} tensors are from it; drawn anew: {_parts(ours.keys() - taken.keys())}")
    if unused := tensors.keys() - taken.keys():
        notes.append(f"left aside: {_parts(unused)}")
    save_checkpoint(place.parent, _checkpoint(config, {**ours, **taken}))
    RunFolder(out).write_text("config.yaml", config.to_yaml())
    return notes


def _tensors_of(it: Import) -> dict[str, Tensor]:
    """Return all tensors under our names, without a norm that every backbone has and this one's training had not."""
    has_norm = it.backbone.spec.encoder.has_norm
    encoder = it.backbone.state_dict()
    kept = {name: each for name, each in encoder.items() if has_norm or not name.startswith("encoder.norm.")}
    return {**kept, **it.decoders.tensors}


def _settings_of(it: Import) -> dict[str, Any]:
    """Return the method's settings with what the source says of itself in their place."""
    method, spec = METHODS.get(it.method)(), it.backbone.spec
    usual = method.model_dump()
    return {
        **usual,
        "granularities": list(spec.channels),
        "channels": dict(spec.channels),
        "image_size": spec.image_size,
        "encoder": {**spec.encoder.model_dump(), "has_norm": method.encoder.has_norm},
        "decoder": {**usual["decoder"], **it.decoders.settings},
        "targets": {**usual["targets"], **it.decoders.targets},
        "mean": spec.mean,
        "std": spec.std,
        **it.settings,
    }


def _change_channels(it: Import, tensors: dict[str, Tensor], settings: dict[str, Any], channels: int) -> str:
    """Make photos of so many channels of those that it knows, in place, and say how."""
    had = it.backbone.spec.channels.get("rgb")
    if had is None:
        raise UserError(f"{it.backbone.report.source}: does not know photos, so that it has no channels to change")
    mean = tensors["embeddings.rgb.proj.weight"].mean(dim=1, keepdim=True)
    # What is alike in all channels gives the same as before.
    tensors["embeddings.rgb.proj.weight"] = (mean * had / channels).repeat(1, channels, 1, 1)
    for name in [name for name in tensors if name.startswith("heads.rgb")]:
        tensors[name] = tensors[name].unflatten(0, (-1, had)).mean(dim=1).repeat_interleave(channels, dim=0)
    settings |= {"channels": {**settings["channels"], "rgb": channels}, "mean": None, "std": None}
    return (
        f"photos of {channels} channels instead of {had}: each is seen and predicted as the mean of {had} was; by what "
        "they are standardised is left to the data"
    )


def _checkpoint(config: PretrainConfig, weights: Mapping[str, Tensor]) -> Checkpoint:
    mean, std = config.method.normalisation("rgb")
    facts = {
        "config": config.model_dump(mode="json"),
        "classes": [],
        "labels": [],
        "normalisation": {"mean": list(mean), "std": list(std)},
        "samples": 0,
    }
    return Checkpoint(0, {f"model/{name}": each.contiguous() for name, each in weights.items()}, facts)


def _parts(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"
