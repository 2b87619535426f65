"""Weights to start from: an earlier run's, or those of anything that `load_backbone` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint
from c2fmae.methods.masked import MaskedAutoencoding
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.encoder import Encoder

TIMM_PREFIX = "timm:"


def load_initial_weights(method: MaskedAutoencoding, source: str) -> str:
    """Load a source into a method's model: a run, a checkpoint, or whatever `load_backbone` takes; say what was loaded.

    The encoder has to be there whole. Of a run, whatever else has the same name and shape is taken too.
    """
    try:
        checkpoint = find_checkpoint(Path(source)) if is_run_or_checkpoint(Path(source)) else None
        is_autoencoder = checkpoint and RunInfo.from_checkpoint(checkpoint, Path(source)).kind == "pretraining"
        weights = checkpoint.tensors_of("model") if checkpoint and is_autoencoder else _backbone_tensors(method, source)
    except UserError as error:
        raise UserError(f"init: {error}") from error
    ours = method.model.state_dict()
    loaded = {name: tensor for name, tensor in weights.items() if name in ours and tensor.shape == ours[name].shape}
    missing = [name for name in ours if name.startswith("encoder.") and name not in loaded]
    if missing:
        raise UserError(
            f"init: {source} does not fit the encoder {method.config.encoder.name!r}: {len(missing)} of its tensors "
            f"are missing or of another shape, the first is {missing[0]}"
        )
    method.model.load_state_dict({**ours, **loaded})
    not_loaded = sorted({".".join(name.split(".")[:2]) for name in ours if name not in loaded})
    return f"{len(loaded)} of {len(ours)} tensors are from {source}; drawn anew: {', '.join(not_loaded) or 'none'}"


def _backbone_tensors(method: MaskedAutoencoding, source: str) -> Mapping[str, Tensor]:
    config, encoder = method.config, cast(Encoder, method.model.encoder)
    name = source.removeprefix(TIMM_PREFIX).partition("@")[0]
    if source.startswith(TIMM_PREFIX) and name != config.encoder.name:
        raise UserError(
            f"{source} is a {name}, but the encoder is a {config.encoder.name}. Set method.encoder.name={name}"
        )
    ours = _num_heads(encoder)
    backbone = load_backbone(source, image_size=config.image_size, num_heads=ours)
    if backbone.spec.encoder.keep_positions and not config.encoder.keep_positions:
        raise UserError(f"{source} comes with its own positions. Set method.encoder.keep_positions=true")
    if (heads := _num_heads(backbone.encoder)) != ours:
        raise UserError(
            f"{source} has {heads} attention heads, but the encoder {ours}. Set method.encoder.num_heads={heads}"
        )
    tensors = backbone.state_dict()
    if config.encoder.keep_positions and not backbone.spec.encoder.keep_positions:
        tensors["encoder.pos_embed"] = encoder.pos_embed  # sines and cosines, as the source's
    return {name: tensor for name, tensor in tensors.items() if not _is_added_norm(backbone, name)}


def _num_heads(encoder: Encoder) -> int:
    block: Any = encoder.blocks[0]
    return int(block.attn.num_heads)


def _is_added_norm(backbone: Backbone, name: str) -> bool:
    """Return whether a backbone has a tensor because all have it: a norm that its source has not."""
    return name.startswith("encoder.norm.") and not backbone.spec.encoder.has_norm
