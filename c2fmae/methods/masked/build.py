"""Building of a masked autoencoder from its config: model, objectives and masking policy."""

import torch

from c2fmae.config.method import MaskedConfig
from c2fmae.core.errors import UserError, check_patch_multiples
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.seeding import derive_seed
from c2fmae.methods.masked.method import MaskedAutoencoding
from c2fmae.methods.masked.objectives import Objective
from c2fmae.models.autoencoder import MultiGranularAutoencoder, PredictionHead
from c2fmae.models.decoders import DecoderLayout
from c2fmae.models.embeddings import create_embeddings
from c2fmae.models.encoder import Encoder, create_vit
from c2fmae.models.initialise import initialise
from c2fmae.models.patches import label_stride
from c2fmae.models.positions import sincos_positions


def build_masked_autoencoding(config: MaskedConfig, *, seed: int) -> MaskedAutoencoding:
    """Build the model of a config with weights that depend on the seed, its objectives and its policy."""
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
    for _, size in config.early_image_sizes:
        check_patch_multiples(size, patch_size, origin, key="early_image_sizes")
    config.resolve_num_visible(config.image_size[0] // patch_size * (config.image_size[1] // patch_size))
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

    heads = config.head_plans()
    layout = DecoderLayout(
        encoder_dim=encoder.dim,
        granularities=config.granularities,
        stages={head.stage: head.granularity for head in heads},
    )
    decoder = config.decoder.instantiate(layout)
    if config.decoder.share < 1 and not getattr(decoder, "supports_share", False):
        raise UserError(
            f"decoder.share: decoder {config.decoder.name!r} always decodes all patches (expected 1, got "
            f"{config.decoder.share:g}). Remove the setting, or use a decoder that supports it, such as cascaded"
        )
    objectives = {}
    for head in heads:
        spec = GRANULARITIES.get(head.granularity)
        cells = patch_size // label_stride(patch_size) if spec.kind == "ids" else patch_size
        target = head.target.instantiate(config.num_channels(head.granularity), cells)
        objectives[head.name] = Objective(head.granularity, target, config.loss_weights.get(head.name, 1.0))
    model = MultiGranularAutoencoder(
        create_embeddings(vit, {name: config.num_channels(name) for name in config.granularities}),
        encoder,
        decoder,
        {
            head.name: PredictionHead(head.stage, config.decoder.options.dim, objectives[head.name].target.size)
            for head in heads
        },
    )
    if next(model.parameters()).device.type != "meta":
        generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
        initialise(model, generator, split_qkv=config.initialisation == "split")
    return MaskedAutoencoding(config, model, objectives, config.masking.build(), patch_size)
