"""Inference of a ViT's architecture from the shapes of its tensors, for files that hold only weights."""

import math
from collections.abc import Iterable

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig

_NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Attention heads by width in MAE; other ViTs have one per 64 channels."""

_TIMM_VITS = {
    (192, 12, 3): ("vit_tiny_patch16_224", 16),
    (384, 12, 6): ("vit_small_patch16_224", 16),
    (1024, 24, 16): ("vit_large_patch16_224", 16),
    (1280, 32, 16): ("vit_huge_patch14_224", 14),
}
"""timm's plain ViTs and their patch sizes by width, depth and heads; all others are a ViT-B with changes."""

_VIT_BASE = {"patch_size": 16, "dim": 768, "depth": 12, "num_heads": 12}


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return the number of blocks whose names have a prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})


def infer_encoder_config(
    source: str, *, width: int, depth: int, patch: int, mlp_dim: int, num_heads: int, norm_eps: float | None = None
) -> EncoderConfig:
    """Return the config of an encoder of these sizes, based on timm's ViT of the same sizes or on ViT-B."""
    if width % num_heads:
        raise UserError(f"{source}: width {width} is not a multiple of {num_heads} attention heads. Set num_heads")
    name, default_patch = _TIMM_VITS.get((width, depth, num_heads), ("vit_base_patch16_224", 16))
    sizes = {"patch_size": patch, "dim": width, "depth": depth, "num_heads": num_heads}
    base = sizes | {"patch_size": default_patch} if (width, depth, num_heads) in _TIMM_VITS else _VIT_BASE
    changed = {key: size for key, size in sizes.items() if size != base[key]}
    ratio = {} if mlp_dim == 4 * width else {"mlp_ratio": compute_mlp_ratio(mlp_dim, width)}
    eps = {} if norm_eps is None else {"norm_eps": norm_eps}
    values = {"name": name, **changed, **ratio, **eps, "has_norm": True, "keep_positions": True}
    return EncoderConfig.from_dict(values, source=source)


def infer_num_heads(width: int, num_heads: int | None) -> tuple[int, list[str]]:
    """Return the number of attention heads of a ViT of this width, and a note if it is assumed."""
    if num_heads:
        return num_heads, []
    heads = _NUM_HEADS.get(width) or max(width // 64, 1)
    reason = f"as MAE has at width {width}" if width in _NUM_HEADS else f"one per 64 channels of width {width}"
    return heads, [f"the number of attention heads is not stored: {heads} are assumed, {reason} (set num_heads)"]


def infer_decoder_num_heads(dim: int) -> int:
    """Return the number of attention heads that MAE's and MultiMAE's decoders have: one per 32 channels."""
    return max(dim // 32, 1)


def infer_patch_embed(source: str, name: str, kernel: Tensor) -> tuple[int, int, int]:
    """Return the width, channels and patch size of a patch projection's kernel."""
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or not kernel.numel():
        raise UserError(
            f"{source}: {name} has shape {tuple(kernel.shape)}, expected a convolution over square patches. Use a "
            "plain ViT"
        )
    return kernel.shape[0], kernel.shape[1], kernel.shape[2]


def infer_image_size(source: str, num_patches: int, patch: int) -> tuple[int, int]:
    """Return the height and width of square images with this number of patches."""
    side = math.isqrt(max(num_patches, 0))
    if side**2 != num_patches or not num_patches:
        raise UserError(
            f"{source}: has positions of {num_patches} patches, which is not a square grid. "
            "Set image_size to the height and width of its images"
        )
    return side * patch, side * patch


def default_normalisation(channels: int) -> dict[str, tuple[float, ...]]:
    """Return the default mean and standard deviation of images."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    return {"mean": mean, "std": std}


def compute_mlp_ratio(mlp_dim: int, width: int) -> float:
    """Return the ratio from which `int(width * ratio)` gives the width of the MLP exactly."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width
