"""Initial weights: those of another run, or of any source that `load_backbone` reads."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint
from c2fmae.core.text import format_count
from c2fmae.methods.protocol import Method
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.backbones.channels import RGB_EMBEDDING, change_image_channels
from c2fmae.models.backbones.timm_reader import TIMM_PREFIX
from c2fmae.models.encoder import Encoder


@dataclass(frozen=True)
class InitialWeights:
    """The tensors of a model that were loaded from a source, and those that were not."""

    source: str
    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    """Tensors with the random weights of a new model."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        modules = sorted({".".join(name.split(".")[:2]) for name in self.initialised})
        count = f"{len(self.loaded)} of {len(self.loaded) + len(self.initialised)} tensors loaded"
        notes = "".join(f"\n{self.source}: {note}" for note in self.notes)
        return f"{self.source}: {count}; newly initialised: {', '.join(modules) or 'none'}{notes}"


def load_initial_weights(method: Method, source: str) -> InitialWeights:
    """Load weights into the model of a method, from a run, a checkpoint, or any source that `load_backbone` reads.

    The encoder must be complete. From a run or checkpoint, all other tensors of the same name and shape are loaded too.
    Weights for images of another number of channels are converted.
    """
    try:
        checkpoint = find_checkpoint(Path(source)) if is_run_or_checkpoint(Path(source)) else None
        is_autoencoder = checkpoint and RunInfo.from_checkpoint(checkpoint, Path(source)).kind == "pretraining"
        weights = checkpoint.tensors_of("model") if checkpoint and is_autoencoder else _backbone_tensors(method, source)
    except UserError as error:
        raise UserError(f"init: {error}") from error
    ours, weights, notes = method.model.state_dict(), dict(weights), list[str]()
    if RGB_EMBEDDING in weights and RGB_EMBEDDING in ours:
        shape, expected = weights[RGB_EMBEDDING].shape, ours[RGB_EMBEDDING].shape
        if shape[1] != expected[1] and (shape[0], *shape[2:]) == (expected[0], *expected[2:]):
            notes.append(change_image_channels(weights, expected[1]))
    loaded = {name: tensor for name, tensor in weights.items() if name in ours and tensor.shape == ours[name].shape}
    missing = [name for name in ours if name.startswith("encoder.") and name not in loaded]
    if missing:
        raise UserError(
            f"init: {source}: does not fit the encoder {method.config.encoder.name!r}: the source has "
            f"{_describe_size(weights)}, the encoder {_describe_size(ours)}; "
            f"{format_count(len(missing), 'tensor is', 'tensors are')} missing or of another shape, such as "
            f"{missing[0]}. Use the recipe of the source's size, or set method.encoder to that of the source"
        )
    method.model.load_state_dict({**ours, **loaded})
    return InitialWeights(source, tuple(loaded), tuple(name for name in ours if name not in loaded), tuple(notes))


def _describe_size(tensors: Mapping[str, Tensor]) -> str:
    """Return the width and depth of the encoder among the tensors of a model."""
    norms = [name for name in tensors if re.fullmatch(r"encoder\.blocks\.\d+\.norm1\.weight", name)]
    if not norms:
        return "no blocks"
    return f"width {len(tensors[norms[0]])} and {format_count(len(norms), 'block')}"


def _backbone_tensors(method: Method, source: str) -> Mapping[str, Tensor]:
    config, encoder = method.config, cast(Encoder, method.model.encoder)
    name = source.removeprefix(TIMM_PREFIX).partition("@")[0]
    if source.startswith(TIMM_PREFIX) and name != config.encoder.name:
        raise UserError(
            f"{source}: expected the encoder {config.encoder.name}, got {name}. Set method.encoder.name={name}"
        )
    ours = _num_heads(encoder)
    backbone = load_backbone(source, image_size=config.image_size, num_heads=ours)
    if backbone.spec.encoder.keep_positions and not config.encoder.keep_positions:
        raise UserError(f"{source}: has position embeddings of its own. Set method.encoder.keep_positions=true")
    if (heads := _num_heads(backbone.encoder)) != ours:
        raise UserError(f"{source}: expected {ours} attention heads, got {heads}. Set method.encoder.num_heads={heads}")
    tensors = backbone.state_dict()
    if config.encoder.keep_positions and not backbone.spec.encoder.keep_positions:
        # Sines and cosines, as in the source.
        device = next(encoder.parameters()).device
        tensors["encoder.pos_embed"] = backbone.encoder.positions(encoder.pos_grid, device).unsqueeze(0)
    return {name: tensor for name, tensor in tensors.items() if not _is_added_norm(backbone, name)}


def _num_heads(encoder: Encoder) -> int:
    block: Any = encoder.blocks[0]
    return int(block.attn.num_heads)


def _is_added_norm(backbone: Backbone, name: str) -> bool:
    """Return whether a tensor belongs to a final norm that was added to a backbone whose source has none."""
    return name.startswith("encoder.norm.") and not backbone.spec.encoder.has_norm
