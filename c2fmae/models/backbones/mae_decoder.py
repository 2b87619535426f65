"""Conversion of MAE's decoder to the `joint` decoder, which computes the same outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.assemble import SourceContents, is_sincos_table
from c2fmae.models.backbones.infer import compute_mlp_ratio, count_blocks, infer_decoder_num_heads

_RENAMES = {
    "decoder_embed.": "decoder.entry.project.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "heads.rgb.",
    "mask_token": "decoder.entry.mask_token",
}


@dataclass(frozen=True, kw_only=True)
class SourceDecoders:
    """The decoders and heads of a source, under c2fmae's names."""

    settings: Mapping[str, Any]
    """Options of the decoder's config."""
    targets: Mapping[str, Sequence[str]]
    """The targets by granularity; empty if the tensors do not determine them."""
    tensors: Mapping[str, Tensor]
    notes: Sequence[str]


def convert_mae_decoder(contents: SourceContents, num_heads: int | None) -> SourceDecoders:
    """Convert the decoder in a source's contents, which has MAE's names; the result is empty if there is none."""
    mae_tensors = contents.tensors
    if "decoder_embed.weight" not in mae_tensors:
        return SourceDecoders(settings={}, targets={}, tensors={}, notes=["the source has no decoder"])
    _check_positions(contents)
    dim, notes = len(mae_tensors["decoder_embed.weight"]), list[str]()
    if num_heads is None:
        num_heads = infer_decoder_num_heads(dim)
        notes.append(
            f"its decoder's number of attention heads is not stored: {num_heads} are assumed, as in MAE at width {dim}"
        )
    settings = {
        "dim": dim,
        "num_heads": num_heads,
        "depth": count_blocks(mae_tensors, "decoder_blocks."),
        "mlp_ratio": compute_mlp_ratio(len(mae_tensors["decoder_blocks.0.mlp.fc1.weight"]), dim),
    }
    tensors = {
        new + name.removeprefix(old): tensor.flatten() if old == "mask_token" else tensor
        for name, tensor in mae_tensors.items()
        for old, new in _RENAMES.items()
        if name.startswith(old)
    }
    return SourceDecoders(settings=settings, targets={}, tensors=tensors, notes=notes)


def unsupported_positions_error(source: str) -> UserError:
    """Return the error for a decoder whose positions are not sines and cosines."""
    return UserError(
        f"{source}: the positions of its decoder are not sines and cosines, which is not supported. "
        f"Start from its encoder only: c2fmae pretrain … --init {source}"
    )


def _check_positions(contents: SourceContents) -> None:
    table, size = contents.tensors.get("decoder_pos_embed"), contents.pos_embed_image_size or contents.spec.image_size
    patch = contents.tensors["patch_embed.proj.weight"].shape[2]
    grid = (size[0] // patch, size[1] // patch)
    if table is None or table.ndim != 3 or table.shape[1] != 1 + grid[0] * grid[1]:
        raise unsupported_positions_error(contents.source)
    if bool(table[0, 0].any()) or not is_sincos_table(table[0, 1:], grid):
        raise unsupported_positions_error(contents.source)
