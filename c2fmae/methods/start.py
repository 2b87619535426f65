"""Weights to start from: a timm ViT's, or those of an earlier run."""

from collections.abc import Mapping
from pathlib import Path

import timm
from timm.models import load_checkpoint as load_into
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.run_folder import find_checkpoint
from c2fmae.methods.masked import MaskedAutoencoding
from c2fmae.models.embeddings import ImageEmbedding
from c2fmae.models.encoder import Encoder, create_vit

TIMM = "timm:"


def start_from(method: MaskedAutoencoding, source: str) -> str:
    """Load a source into a method's model: `timm:NAME`, `timm:NAME@FILE`, a run or a checkpoint; say what was loaded.

    The encoder has to be there whole. Of a run, whatever else has the same name and shape is taken too.
    """
    weights = _of_timm(method, source) if source.startswith(TIMM) else _of_run(Path(source))
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


def _of_timm(method: MaskedAutoencoding, source: str) -> dict[str, Tensor]:
    name, _, file = source.removeprefix(TIMM).partition("@")
    config = method.config
    if name != config.encoder.name:
        raise UserError(
            f"init: {source} is a {name}, but the encoder is a {config.encoder.name}. Set method.encoder.name={name}"
        )
    if not config.encoder.keep_positions:
        raise UserError(f"init: {source} comes with its own positions. Set method.encoder.keep_positions=true")
    vit = create_vit(name, image_size=config.image_size, channels=config.channels_of("rgb"), **config.encoder.shape())
    try:
        if file:
            # Tensors alone: timm unpickles nothing else. The filter brings positions to our grid.
            missing = load_into(vit, file, strict=False, filter_fn=checkpoint_filter_fn).missing_keys
            if missing:
                raise ValueError(f"{file} lacks {len(missing)} of its tensors, the first is {missing[0]}")
        else:
            donor = timm.create_model(name, pretrained=True, num_classes=0, img_size=config.image_size)
            vit.load_state_dict(donor.state_dict(), strict=False)
    except Exception as error:  # a download, a file and its contents can fail in a hundred ways
        raise UserError(f"init: {source} cannot be loaded: {' '.join(str(error).split())}") from error
    encoder = Encoder(vit, has_norm=config.encoder.has_norm, keep_positions=config.encoder.keep_positions)
    parts: dict[str, Mapping[str, Tensor]] = {
        "encoder": encoder.state_dict(),
        "embeddings.rgb": ImageEmbedding(vit.patch_embed).state_dict(),
    }
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _of_run(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"init: {path} does not exist. Give a run, a checkpoint, timm:NAME or timm:NAME@FILE")
    try:
        return find_checkpoint(path).part("model")
    except UserError as error:
        raise UserError(f"init: {error}") from error
