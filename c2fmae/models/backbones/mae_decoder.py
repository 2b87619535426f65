"""The decoder of a file of MAE, as our `joint` one, which computes the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.assemble import Found, are_sincos
from c2fmae.models.backbones.infer import depth_of, ratio_of

_WORDS = {
    "decoder_embed.": "decoder.entry.project.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "heads.rgb.",
    "mask_token": "decoder.entry.mask_token",
}


@dataclass(frozen=True, kw_only=True)
class FoundDecoders:
    """What a source holds of decoders and heads, under our names."""

    settings: Mapping[str, Any]
    """Of the decoder's config."""
    targets: Mapping[str, Sequence[str]]
    """What is predicted, by granularity; nothing where only its training's options could say so."""
    tensors: Mapping[str, Tensor]
    notes: Sequence[str]


def mae_decoder(found: Found, num_heads: int | None) -> FoundDecoders:
    """Return the decoder that came along under MAE's names; nothing where there is none."""
    theirs = found.tensors
    if "decoder_embed.weight" not in theirs:
        return FoundDecoders(settings={}, targets={}, tensors={}, notes=["it has no decoder"])
    _check_positions(found)
    dim, notes = len(theirs["decoder_embed.weight"]), list[str]()
    if num_heads is None:
        num_heads = max(dim // 32, 1)
        notes.append(f"its decoder has {num_heads} attention heads, one for 32 of its width, as MAE's own has")
    settings = {
        "dim": dim,
        "num_heads": num_heads,
        "depth": depth_of(theirs, "decoder_blocks."),
        "mlp_ratio": ratio_of(len(theirs["decoder_blocks.0.mlp.fc1.weight"]), dim),
    }
    tensors = {
        new + name.removeprefix(old): each.flatten() if old == "mask_token" else each
        for name, each in theirs.items()
        for old, new in _WORDS.items()
        if name.startswith(old)
    }
    return FoundDecoders(settings=settings, targets={}, tensors=tensors, notes=notes)


def other_positions(source: str) -> UserError:
    """Return the error for a decoder that cannot be ours."""
    return UserError(
        f"{source}: its decoder's positions are not the sines and cosines that all of ours have. "
        f"Begin with its encoder alone: c2fmae pretrain … --init {source}"
    )


def _check_positions(found: Found) -> None:
    table, size = found.tensors.get("decoder_pos_embed"), found.table_size or found.spec.image_size
    patch = found.tensors["patch_embed.proj.weight"].shape[2]
    grid = (size[0] // patch, size[1] // patch)
    if table is None or table.ndim != 3 or table.shape[1] != 1 + grid[0] * grid[1]:
        raise other_positions(found.source)
    if bool(table[0, 0].any()) or not are_sincos(table[0, 1:], grid):
        raise other_positions(found.source)
