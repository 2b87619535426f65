"""Small models and parts of models with random weights, and random masks and maps."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import timm
import torch
from hypothesis import strategies as st
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.config.decoder import DecoderConfig
from c2fmae.core.choice import get_option_class
from c2fmae.core.masks import Masks
from c2fmae.models import (
    DECODERS,
    DecoderLayout,
    Embeddings,
    Encoder,
    IdEmbedding,
    ImageEmbedding,
    MultiGranularAutoencoder,
    PredictionHead,
)

ALL_GRANULARITIES = ("semantic", "instance", "rgb")
NUM_CLASSES = 23

M = TypeVar("M", bound=nn.Module)

seeds = st.integers(0, 2**32 - 1)


def draw_normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise from a generator of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise_parameters(module: M, seed: int = 0, *, std: float = 0.3) -> M:
    """Draw all parameters, also those that are zero or one at initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, std, generator=generator)
    return module


def draw_masks_at_random(
    granularities: Sequence[str] = ALL_GRANULARITIES,
    *,
    batch: int = 2,
    num_patches: int = 6,
    num_visible: int = 5,
    seed: int = 0,
) -> Masks:
    """Masks with random visible patches."""
    generator = torch.Generator().manual_seed(seed)
    total = len(granularities) * num_patches
    order = torch.rand(batch, total, generator=generator).argsort(dim=1)
    is_masked = (order >= num_visible).view(batch, len(granularities), num_patches)
    return Masks.from_mask(is_masked, granularities, num_visible=num_visible)


def draw_input_maps(
    granularities: Sequence[str] = ALL_GRANULARITIES,
    *,
    batch: int = 2,
    grid: tuple[int, int] = (2, 3),
    patch: int = 16,
    cells: int = 4,
    channels: int = 3,
    classes: int = NUM_CLASSES,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Standardised images, and id maps in which a tenth of the cells is unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    maps = {}
    for name in granularities:
        if name == "rgb":
            maps[name] = torch.randn(batch, channels, grid[0] * patch, grid[1] * patch, generator=generator)
        else:
            shape = (batch, grid[0] * cells, grid[1] * cells)
            ids = torch.randint(classes, shape, generator=generator)
            ids[torch.rand(shape, generator=generator) < 0.1] = 255
            maps[name] = ids.to(torch.uint8)
    return maps


def make_embeddings(
    granularities: Sequence[str] = ALL_GRANULARITIES,
    *,
    patch: int = 16,
    channels: int = 3,
    dim: int = 8,
    has_norm: bool = False,
) -> Embeddings:
    def make_embedding(name: str) -> nn.Module:
        if name != "rgb":
            return IdEmbedding(NUM_CLASSES, dim, patch=patch, class_dim=4)
        norm = nn.LayerNorm if has_norm else None
        return ImageEmbedding(
            PatchEmbed(img_size=None, patch_size=patch, in_chans=channels, embed_dim=dim, norm_layer=norm)
        )

    return randomise_parameters(Embeddings({name: make_embedding(name) for name in granularities}))


def create_timm_vit(name: str, **options: Any) -> VisionTransformer:
    """A plain ViT of timm without its slow weight initialisation."""
    vit = timm.create_model(name, num_classes=0, weight_init="skip", **options)
    assert isinstance(vit, VisionTransformer)
    return vit


def make_tiny_vit(**options: Any) -> VisionTransformer:
    """A ViT of width 64 for patches of 16, two blocks deep, for images of 32×48 by default."""
    return randomise_parameters(create_timm_vit("test_vit", **{"img_size": (32, 48), "depth": 2, **options}), std=0.1)


def create_decoder(
    name: str,
    granularities: Sequence[str] = ALL_GRANULARITIES,
    *,
    stages: Mapping[str, str] | None = None,
    **options: Any,
) -> nn.Module:
    """A decoder, tiny by default; options that it does not have are ignored."""
    options = {"dim": 16, "num_heads": 2, "depth": 1, "mlp_ratio": 2.0, **options}
    known = get_option_class(DECODERS, name).model_fields
    config = DecoderConfig(name=name, options={key: value for key, value in options.items() if key in known})
    stages = {name: name for name in granularities} if stages is None else stages
    built = config.instantiate(DecoderLayout(encoder_dim=64, granularities=tuple(granularities), stages=stages))
    assert isinstance(built, nn.Module)
    return built


def make_decoder(name: str, granularities: Sequence[str] = ALL_GRANULARITIES, **changes: Any) -> nn.Module:
    return randomise_parameters(create_decoder(name, granularities, **changes))


VISIBLE_DECODERS = [name for name in DECODERS if not getattr(create_decoder(name), "needs_mask_tokens", False)]
"""Decoders that read the latents of visible patches alone."""


def draw_latent(masks: Masks, *, num_prefix: int = 1, seed: int = 0) -> Tensor:
    """Random latents of an encoder of width 64."""
    batch, num_visible = masks.visible_idx.shape
    return draw_normal(batch, num_prefix + num_visible, 64, seed=seed)


def make_autoencoder(
    decoder: str = "cascaded", granularities: Sequence[str] = ALL_GRANULARITIES, **changes: Any
) -> MultiGranularAutoencoder:
    """A model whose heads predict three values for each patch."""
    vit = make_tiny_vit(depth=1)
    embeddings = {
        name: ImageEmbedding(vit.patch_embed) if name == "rgb" else IdEmbedding(NUM_CLASSES, 64, patch=16, class_dim=4)
        for name in granularities
    }
    built = create_decoder(decoder, granularities, **changes)
    heads = {name: PredictionHead(name, changes.get("dim", 16), 3) for name in changes.get("stages", granularities)}
    model = MultiGranularAutoencoder(Embeddings(embeddings), Encoder(vit), built, heads)
    return randomise_parameters(model, std=0.1)


def changed_predictions(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """The names of predictions that are not bitwise equal."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
