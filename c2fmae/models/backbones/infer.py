"""What files of bare weights do not say of their ViT, inferred from the shapes of its tensors."""

import math
from collections.abc import Iterable

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig

_NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Attention heads by width, as MAE has them; other ViTs have one for 64 of their width."""

_TIMM_VITS = {
    (192, 12, 3): ("vit_tiny_patch16_224", 16),
    (384, 12, 6): ("vit_small_patch16_224", 16),
    (1024, 24, 16): ("vit_large_patch16_224", 16),
    (1280, 32, 16): ("vit_huge_patch14_224", 14),
}
"""timm's plain ViTs by width, depth and heads, and their patches; all others are ViT-B changed."""

_VIT_BASE = {"patch_size": 16, "dim": 768, "depth": 12, "num_heads": 12}


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return how many blocks there are under a prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})


def infer_encoder_config(
    source: str, *, width: int, depth: int, patch: int, mlp_dim: int, num_heads: int, norm_eps: float | None = None
) -> EncoderConfig:
    """Return the encoder of these sizes, by the name of timm's that has them or of the nearest; it has a norm."""
    if width % num_heads:
        raise UserError(f"{source}: {num_heads} attention heads do not divide its width, {width}. Say num_heads")
    name, usual = _TIMM_VITS.get((width, depth, num_heads), ("vit_base_patch16_224", 16))
    sizes = {"patch_size": patch, "dim": width, "depth": depth, "num_heads": num_heads}
    base = sizes | {"patch_size": usual} if (width, depth, num_heads) in _TIMM_VITS else _VIT_BASE
    changed = {key: size for key, size in sizes.items() if size != base[key]}
    ratio = {} if mlp_dim == 4 * width else {"mlp_ratio": compute_mlp_ratio(mlp_dim, width)}
    eps = {} if norm_eps is None else {"norm_eps": norm_eps}
    values = {"name": name, **changed, **ratio, **eps, "has_norm": True, "keep_positions": True}
    return EncoderConfig.from_dict(values, source=source)


def infer_num_heads(width: int, num_heads: int | None) -> tuple[int, list[str]]:
    """Return how many attention heads a ViT of this width has, and a note where nobody said so."""
    if num_heads:
        return num_heads, []
    heads = _NUM_HEADS.get(width) or max(width // 64, 1)
    reason = "MAE has so many at" if width in _NUM_HEADS else "one for 64 of"
    return heads, [f"it does not say how many attention heads it has: {heads}, {reason} its width, {width} (num_heads)"]


def infer_patch_embed(source: str, name: str, kernel: Tensor) -> tuple[int, int, int]:
    """Return the width, channels and patch of a projection of patches."""
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise UserError(f"{source}: {name} is {tuple(kernel.shape)}: no convolution over square patches")
    return kernel.shape[0], kernel.shape[1], kernel.shape[2]


def infer_image_size(source: str, num_patches: int, patch: int) -> tuple[int, int]:
    """Return height and width of the photos that have so many patches, if they are square."""
    side = math.isqrt(max(num_patches, 0))
    if side**2 != num_patches or not num_patches:
        raise UserError(
            f"{source}: its positions are of {num_patches} patches, which are no square. "
            "Say the photos' height and width with image_size"
        )
    return side * patch, side * patch


def default_normalisation(channels: int) -> dict[str, tuple[float, ...]]:
    """Return the mean and deviation by which photos are standardised where nobody says so."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    return {"mean": mean, "std": std}


def compute_mlp_ratio(mlp_dim: int, width: int) -> float:
    """Return by what a width is multiplied to give that of an MLP, which is cut to a whole number."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width
