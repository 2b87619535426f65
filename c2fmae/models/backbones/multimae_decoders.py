"""Conversion of MultiMAE's decoders to stages of the `parallel` decoder, which compute the same outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.assemble import is_sincos_table
from c2fmae.models.backbones.infer import compute_mlp_ratio, count_blocks, infer_decoder_num_heads
from c2fmae.models.backbones.mae_decoder import SourceDecoders, unsupported_positions_error
from c2fmae.models.backbones.multimae_reader import TASK_TO_GRANULARITY

_ADAPTERS = {
    "semantic": {"labels": "semseg"},
    "depth": {"absolute": "depth"},
    "rgb": {"pixels": "rgb", "normalized_pixels": "norm_rgb"},
}
"""MultiMAE's output adapters by granularity and target."""

_RENAMES = {
    "proj_context.": "decoder.entries.{index}.project.",
    "mask_token": "decoder.entries.{index}.mask_token",
    "query_norm.": "decoder.stages.{head}.first.norm_query.",
    "context_norm.": "decoder.stages.{head}.first.norm_context.",
    "out_norm.": "decoder.stages.{head}.first.norm.",
    "decoder.": "decoder.stages.{head}.first.attn.",
    "mlp.": "decoder.stages.{head}.first.mlp.",
    "decoder_transformer.": "decoder.stages.{head}.rest.",
    "out_proj.": "heads.{head}.",
}

_INPUT_CHANNEL_NAMES = ("q.weight", "kv.weight", "qkv.weight", "fc1.weight", "out_proj.weight")
"""Tensors whose second axis has the decoder's channels; in other tensors it is the first axis."""
_NO_CHANNEL_NAMES = ("q.bias", "kv.bias", "qkv.bias", "fc1.bias", "out_proj.bias")
"""Tensors without an axis of the decoder's channels."""


def convert_multimae_decoders(
    source: str, multimae_tensors: Mapping[str, Tensor], channels: Mapping[str, int]
) -> SourceDecoders:
    """Convert the decoders of the input granularities, which have these numbers of channels or classes."""
    targets: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    sizes, index = set[tuple[int, int, int]](), 0
    for granularity in channels:
        adapters = {
            target: name for target, name in _ADAPTERS[granularity].items() if _has_decoder(multimae_tensors, name)
        }
        for number, (target, adapter) in enumerate(adapters.items()):
            head = f"{granularity}_{target}" if number else granularity
            adapter_tensors = _strip_prefix(multimae_tensors, f"output_adapters.{adapter}.")
            sizes.add(_decoder_sizes(adapter_tensors))
            tensors |= _convert_stage(source, adapter_tensors, index + number, head, channels)
        index += max(len(adapters), 1)  # a granularity without a decoder gets a new one
        targets |= {granularity: list(adapters)} if adapters else {}
    if not tensors:
        return SourceDecoders(settings={}, targets={}, tensors={}, notes=["the source has no decoders"])
    if len(sizes) > 1:
        raise UserError(
            f"{source}: its decoders differ in width or depth, which is not supported. "
            f"Start from its encoder only: c2fmae pretrain … --init {source}"
        )
    ((dim, depth, hidden),) = sizes
    heads = infer_decoder_num_heads(dim)
    settings: dict[str, Any] = {
        "dim": dim,
        "num_heads": heads,
        "depth": depth,
        "mlp_ratio": compute_mlp_ratio(hidden, dim),
    }
    notes = [
        f"its decoders' number of attention heads is not stored: {heads} are assumed, as in MultiMAE at width {dim}"
    ]
    return SourceDecoders(settings=settings, targets=targets, tensors=tensors, notes=notes)


def _has_decoder(multimae_tensors: Mapping[str, Tensor], adapter: str) -> bool:
    """Return whether an adapter is a decoder with cross-attention. Adapters for fine-tuning are not."""
    return f"output_adapters.{adapter}.decoder.q.weight" in multimae_tensors


def _strip_prefix(multimae_tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in multimae_tensors.items() if name.startswith(prefix)}


def _decoder_sizes(adapter_tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    return (
        len(adapter_tensors["decoder.q.weight"]),
        count_blocks(adapter_tensors, "decoder_transformer."),
        len(adapter_tensors["mlp.fc1.weight"]),
    )


def _convert_stage(
    source: str, adapter_tensors: dict[str, Tensor], index: int, head: str, channels: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the tensors of a decoder as those of a stage, its entry and its head.

    MultiMAE's positions encode the row, then the column; c2fmae's encode the column, then the row. Swapping the two
    halves of all the decoder's channels makes them equal and does not change its predictions.
    """
    table = adapter_tensors.pop("pos_emb")
    swapped_channels = torch.arange(table.shape[1]).roll(table.shape[1] // 2)
    if not is_sincos_table(table.flatten(2)[0].T[:, swapped_channels], (table.shape[2], table.shape[3])):
        raise unsupported_positions_error(source)
    task_embeddings = {
        ours: adapter_tensors.pop(f"task_embeddings.{theirs}", None) for theirs, ours in TASK_TO_GRANULARITY.items()
    }
    tensors: dict[str, Tensor] = {}
    if len(channels) > 1:
        zeros = table.new_zeros(1, 1, table.shape[1])
        embeddings = [zeros if (tensor := task_embeddings[name]) is None else tensor for name in channels]
        tensors[f"decoder.entries.{index}.granularity"] = torch.cat(embeddings)[:, :, swapped_channels]
    for name, tensor in adapter_tensors.items():
        old = next((prefix for prefix in _RENAMES if name.startswith(prefix)), None)
        if old is None:
            raise UserError(f"{source}: {name} is unexpected in a decoder of MultiMAE. Use an official file")
        if old == "out_proj.":  # from (channels, rows, columns) to (rows, columns, channels)
            tensor = tensor.unflatten(0, (channels[head.partition("_")[0]], -1)).transpose(0, 1).flatten(0, 1)
        if not name.endswith(_NO_CHANNEL_NAMES):
            tensor = tensor.flatten() if old == "mask_token" else tensor
            tensor = tensor.index_select(1 if name.endswith(_INPUT_CHANNEL_NAMES) else 0, swapped_channels)
        tensors[_RENAMES[old].format(index=index, head=head) + name.removeprefix(old)] = tensor
    return tensors
