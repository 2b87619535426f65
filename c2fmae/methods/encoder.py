"""The encoder that the config of a method describes."""

from typing import NamedTuple

from c2fmae.config.method import MethodConfig
from c2fmae.core.errors import check_patch_multiples
from c2fmae.models.embeddings import Embeddings, create_embeddings
from c2fmae.models.encoder import Encoder, create_vit
from c2fmae.models.positions import sincos_positions


class EncoderParts(NamedTuple):
    """Embeddings and encoder of a model."""

    embeddings: Embeddings
    encoder: Encoder
    patch_size: int


def create_encoder(config: MethodConfig) -> EncoderParts:
    """Return the embeddings and the encoder of a config, without initialised weights."""
    vit = create_vit(
        config.encoder.name,
        image_size=config.image_size,
        channels=config.num_channels("rgb"),
        drop_path=config.encoder.drop_path,
        **config.encoder.vit_kwargs(),
    )
    patch_size = vit.patch_embed.patch_size[0]
    origin = "set by this recipe" if config.encoder.patch_size else f"of {config.encoder.name}"
    check_patch_multiples(config.image_size, patch_size, origin)
    for _, size in config.image_size_schedule[:-1]:
        check_patch_multiples(size, patch_size, origin, key="early_image_sizes")
    encoder = Encoder(
        vit,
        has_norm=config.encoder.has_norm,
        use_vit_positions=config.encoder.keep_positions,
        grad_checkpointing=config.encoder.grad_checkpointing,
        position_grid=config.encoder.position_grid,
    )
    if encoder.pos_embed is not None:  # replaced by those of loaded weights; timm does not initialise them here
        device = next(vit.parameters()).device
        encoder.pos_embed = sincos_positions(encoder.pos_grid, encoder.dim, device=device).unsqueeze(0)
    channels = {name: config.num_channels(name) for name in config.granularities}
    return EncoderParts(create_embeddings(vit, channels), encoder, patch_size)
