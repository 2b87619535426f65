"""Weights to start from: an earlier run's, or those of anything that `load_backbone` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.methods.masked import MaskedAutoencoding
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.backbones.run_reader import is_run
from c2fmae.models.encoder import Encoder

TIMM = "timm:"


def start_from(method: MaskedAutoencoding, source: str) -> str:
    """Load a source into a method's model: a run, a checkpoint, or whatever `load_backbone` takes; say what was loaded.

    The encoder has to be there whole. Of a run, whatever else has the same name and shape is taken too.
    """
    try:
        checkpoint = find_checkpoint(Path(source)) if is_run(Path(source)) else None
        is_autoencoder = checkpoint is not None and "classifier" not in checkpoint.facts
        weights = checkpoint.part("model") if checkpoint and is_autoencoder else _of_backbone(method, source)
    except UserError as error:
        raise UserError(f"init: {error}") from error
    ours = method.model.state_dict()
    taken = {name: tensor for name, tensor in weights.items() if name in ours and tensor.shape == ours[name].shape}
    lacking = [name for name in ours if name.startswith("encoder.") and name not in taken]
    if lacking:
        raise UserError(
            f"init: {source} does not fit the encoder {method.config.encoder.name!r}: {len(lacking)} of its tensors "
            f"are missing or of another shape, the first is {lacking[0]}"
        )
    method.model.load_state_dict({**ours, **taken})
    left = sorted({".".join(name.split(".")[:2]) for name in ours if name not in taken})
    return f"{len(taken)} of {len(ours)} tensors are from {source}; drawn anew: {', '.join(left) or 'none'}"


def _of_backbone(method: MaskedAutoencoding, source: str) -> Mapping[str, Tensor]:
    config, encoder = method.config, cast(Encoder, method.model.encoder)
    name = source.removeprefix(TIMM).partition("@")[0]
    if source.startswith(TIMM) and name != config.encoder.name:
        raise UserError(
            f"{source} is a {name}, but the encoder is a {config.encoder.name}. Set method.encoder.name={name}"
        )
    ours = _heads_of(encoder)
    backbone = load_backbone(source, image_size=config.image_size, num_heads=ours)
    if backbone.spec.encoder.keep_positions and not config.encoder.keep_positions:
        raise UserError(f"{source} comes with its own positions. Set method.encoder.keep_positions=true")
    if (heads := _heads_of(backbone.encoder)) != ours:
        raise UserError(
            f"{source} has {heads} attention heads, but the encoder {ours}. Set method.encoder.num_heads={heads}"
        )
    tensors = backbone.state_dict()
    if config.encoder.keep_positions and not backbone.spec.encoder.keep_positions:
        tensors["encoder.pos_embed"] = encoder.pos_embed  # sines and cosines, as the source's
    return {name: tensor for name, tensor in tensors.items() if not _is_new(backbone, name)}


def _heads_of(encoder: Encoder) -> int:
    block: Any = encoder.blocks[0]
    return int(block.attn.num_heads)


def _is_new(backbone: Backbone, name: str) -> bool:
    """Return whether a backbone has a tensor because all have it: a norm that its source has not."""
    return name.startswith("encoder.norm.") and not backbone.spec.encoder.has_norm
