"""Small parts of models with weights that nothing is equal by accident for, and masks to look at them through."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import timm
import torch
from hypothesis import strategies as st
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.masks import Masks
from c2fmae.models import (
    DECODERS,
    DecoderPlan,
    Embeddings,
    Encoder,
    Head,
    IdEmbedding,
    ImageEmbedding,
    MultiGranularAutoencoder,
)

THREE = ("semantic", "instance", "rgb")
CLASSES = 23

M = TypeVar("M", bound=nn.Module)

seeds = st.integers(0, 2**32 - 1)


def noise_of(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise that does not depend on what was drawn before."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(module: M, seed: int = 0, *, std: float = 0.3) -> M:
    """Draw every parameter, those too that start at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, std, generator=generator)
    return module


def masks_of(
    granularities: Sequence[str] = THREE, *, batch: int = 2, num_patches: int = 6, num_visible: int = 5, seed: int = 0
) -> Masks:
    """Masks whose visible patches lie anywhere."""
    generator = torch.Generator().manual_seed(seed)
    total = len(granularities) * num_patches
    order = torch.rand(batch, total, generator=generator).argsort(dim=1)
    is_masked = (order >= num_visible).view(batch, len(granularities), num_patches)
    return Masks.of(is_masked, granularities, num_visible=num_visible)


def maps_of(
    granularities: Sequence[str] = THREE,
    *,
    batch: int = 2,
    grid: tuple[int, int] = (2, 3),
    patch: int = 16,
    cells: int = 4,
    channels: int = 3,
    classes: int = CLASSES,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Standardised photos, and id maps in which a tenth of the cells is unlabelled."""
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


def embeddings_of(
    granularities: Sequence[str] = THREE, *, patch: int = 16, channels: int = 3, dim: int = 8, has_norm: bool = False
) -> Embeddings:
    def one(name: str) -> nn.Module:
        if name != "rgb":
            return IdEmbedding(CLASSES, dim, patch=patch, class_dim=4)
        norm = nn.LayerNorm if has_norm else None
        return ImageEmbedding(
            PatchEmbed(img_size=None, patch_size=patch, in_chans=channels, embed_dim=dim, norm_layer=norm)
        )

    return fill(Embeddings({name: one(name) for name in granularities}))


def vit_of(name: str, **options: Any) -> VisionTransformer:
    """A plain ViT of timm, nothing of which is drawn yet that costs time."""
    vit = timm.create_model(name, num_classes=0, weight_init="skip", **options)
    assert isinstance(vit, VisionTransformer)
    return vit


def tiny_vit(**options: Any) -> VisionTransformer:
    """A ViT of width 64 for patches of 16, two blocks deep, for photos of 32×48 unless told otherwise."""
    return fill(vit_of("test_vit", **{"img_size": (32, 48), "depth": 2, **options}), std=0.1)


def plan_of(granularities: Sequence[str] = THREE, **changes: Any) -> DecoderPlan:
    plan = DecoderPlan(
        width=64,
        granularities=tuple(granularities),
        stages={name: name for name in granularities},
        dim=16,
        num_heads=2,
        depth=1,
        mlp_ratio=2.0,
    )
    return replace(plan, **changes)


def decoder_of(name: str, granularities: Sequence[str] = THREE, **changes: Any) -> nn.Module:
    return fill(DECODERS.get(name)(plan_of(granularities, **changes)))


def latent_of(masks: Masks, *, num_prefix: int = 1, seed: int = 0) -> Tensor:
    """What an encoder of width 64 might say of what is visible."""
    batch, num_visible = masks.visible_idx.shape
    return noise_of(batch, num_prefix + num_visible, 64, seed=seed)


def autoencoder_of(
    decoder: str = "cascaded", granularities: Sequence[str] = THREE, **changes: Any
) -> MultiGranularAutoencoder:
    """A whole model, whose heads predict three values of every patch."""
    vit = tiny_vit(depth=1)
    embeddings = {
        name: ImageEmbedding(vit.patch_embed) if name == "rgb" else IdEmbedding(CLASSES, 64, patch=16, class_dim=4)
        for name in granularities
    }
    plan = plan_of(granularities, **changes)
    heads = {name: Head(name, plan.dim, 3) for name in plan.stages}
    model = MultiGranularAutoencoder(Embeddings(embeddings), Encoder(vit), DECODERS.get(decoder)(plan), heads)
    return fill(model, std=0.1)


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """The predictions that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
