"""Building of a masked autoencoder from its config: model, objectives and masking policy."""

import torch

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.seeding import derive_seed
from c2fmae.methods.encoder import create_encoder
from c2fmae.methods.masked.method import MaskedAutoencoding
from c2fmae.methods.masked.objectives import Objective
from c2fmae.models.autoencoder import MultiGranularAutoencoder, PredictionHead
from c2fmae.models.decoders import DecoderLayout
from c2fmae.models.initialise import initialise
from c2fmae.models.patches import label_stride


def build_masked_autoencoding(config: MaskedConfig, *, seed: int) -> MaskedAutoencoding:
    """Build the model of a config with weights that depend on the seed, its objectives and its policy."""
    embeddings, encoder, patch_size = create_encoder(config)
    config.resolve_num_visible(config.image_size[0] // patch_size * (config.image_size[1] // patch_size))
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
        embeddings,
        encoder,
        decoder,
        {
            head.name: PredictionHead(
                head.stage, config.decoder.resolve_dim(encoder.dim), objectives[head.name].target.size
            )
            for head in heads
        },
    )
    if next(model.parameters()).device.type != "meta":
        generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
        initialise(model, generator, split_qkv=config.initialisation == "split")
    return MaskedAutoencoding(config, model, objectives, config.masking.build(), patch_size)
