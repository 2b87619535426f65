"""The decoder of a file of MAE, as our `joint` one, which computes the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.assemble import SourceContents, is_sincos_table
from c2fmae.models.backbones.infer import compute_mlp_ratio, count_blocks

_RENAMES = {
    "decoder_embed.": "decoder.entry.project.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "heads.rgb.",
    "mask_token": "decoder.entry.mask_token",
}


@dataclass(frozen=True, kw_only=True)
class SourceDecoders:
    """What a source holds of decoders and heads, under our names."""

    settings: Mapping[str, Any]
    """Of the decoder's config."""
    targets: Mapping[str, Sequence[str]]
    """What is predicted, by granularity; nothing where only its training's options could say so."""
    tensors: Mapping[str, Tensor]
    notes: Sequence[str]


def convert_mae_decoder(contents: SourceContents, num_heads: int | None) -> SourceDecoders:
    """Return the decoder that came along under MAE's names; nothing where there is none."""
    mae_tensors = contents.tensors
    if "decoder_embed.weight" not in mae_tensors:
        return SourceDecoders(settings={}, targets={}, tensors={}, notes=["it has no decoder"])
    _check_positions(contents)
    dim, notes = len(mae_tensors["decoder_embed.weight"]), list[str]()
    if num_heads is None:
        num_heads = max(dim // 32, 1)
        notes.append(f"its decoder has {num_heads} attention heads, one for 32 of its width, as MAE's own has")
    settings = {
        "dim": dim,
        "num_heads": num_heads,
        "depth": count_blocks(mae_tensors, "decoder_blocks."),
        "mlp_ratio": compute_mlp_ratio(len(mae_tensors["decoder_blocks.0.mlp.fc1.weight"]), dim),
    }
    tensors = {
        new + name.removeprefix(old): each.flatten() if old == "mask_token" else each
        for name, each in mae_tensors.items()
        for old, new in _RENAMES.items()
        if name.startswith(old)
    }
    return SourceDecoders(settings=settings, targets={}, tensors=tensors, notes=notes)


def unsupported_positions_error(source: str) -> UserError:
    """Return the error for a decoder that cannot be ours."""
    return UserError(
        f"{source}: its decoder's positions are not the sines and cosines that all of ours have. "
        f"Begin with its encoder alone: c2fmae pretrain … --init {source}"
    )


def _check_positions(contents: SourceContents) -> None:
    table, size = contents.tensors.get("decoder_pos_embed"), contents.pos_embed_image_size or contents.spec.image_size
    patch = contents.tensors["patch_embed.proj.weight"].shape[2]
    grid = (size[0] // patch, size[1] // patch)
    if table is None or table.ndim != 3 or table.shape[1] != 1 + grid[0] * grid[1]:
        raise unsupported_positions_error(contents.source)
    if bool(table[0, 0].any()) or not is_sincos_table(table[0, 1:], grid):
        raise unsupported_positions_error(contents.source)
