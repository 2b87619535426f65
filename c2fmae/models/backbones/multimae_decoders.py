"""The decoders of a file of MultiMAE, as stages of our `parallel` one, which compute the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.assemble import are_sincos
from c2fmae.models.backbones.infer import depth_of, ratio_of
from c2fmae.models.backbones.mae_decoder import FoundDecoders, other_positions
from c2fmae.models.backbones.multimae_reader import GRANULARITIES

_TARGETS = {
    "semantic": {"labels": "semseg"},
    "depth": {"absolute": "depth"},
    "rgb": {"pixels": "rgb", "normalized_pixels": "norm_rgb"},
}
"""What it predicts of each granularity, and by which of its adapters."""

_WORDS = {
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

_READ = ("q.weight", "kv.weight", "qkv.weight", "fc1.weight", "out_proj.weight")
"""Whose inputs are a decoder's channels; of the others it is what comes out, but of these nothing is:"""
_APART = ("q.bias", "kv.bias", "qkv.bias", "fc1.bias", "out_proj.bias")


def multimae_decoders(source: str, theirs: Mapping[str, Tensor], channels: Mapping[str, int]) -> FoundDecoders:
    """Return the decoders of the granularities that go in, so many channels or classes of each."""
    targets: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    sizes, index = set[tuple[int, int, int]](), 0
    for granularity in channels:
        found = {target: name for target, name in _TARGETS[granularity].items() if _is_there(theirs, name)}
        for number, (target, adapter) in enumerate(found.items()):
            head = f"{granularity}_{target}" if number else granularity
            own = _under(theirs, f"output_adapters.{adapter}.")
            sizes.add(_sizes(own))
            tensors |= _stage(source, own, index + number, head, channels)
        index += max(len(found), 1)  # what has none is predicted by a new one
        targets |= {granularity: list(found)} if found else {}
    if not tensors:
        return FoundDecoders(settings={}, targets={}, tensors={}, notes=["it has no decoders"])
    if len(sizes) > 1:
        raise UserError(f"{source}: its decoders differ in width or depth, which ours do not")
    ((dim, depth, hidden),) = sizes
    heads = max(dim // 32, 1)
    settings: dict[str, Any] = {"dim": dim, "num_heads": heads, "depth": depth, "mlp_ratio": ratio_of(hidden, dim)}
    notes = [f"its decoders have {heads} attention heads, one for 32 of their width, as MultiMAE's own have"]
    return FoundDecoders(settings=settings, targets=targets, tensors=tensors, notes=notes)


def _is_there(theirs: Mapping[str, Tensor], adapter: str) -> bool:
    """Return whether an adapter is a decoder with cross-attention: those of fine-tuning are of other kinds."""
    return f"output_adapters.{adapter}.decoder.q.weight" in theirs


def _under(theirs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in theirs.items() if name.startswith(prefix)}


def _sizes(own: Mapping[str, Tensor]) -> tuple[int, int, int]:
    return len(own["decoder.q.weight"]), depth_of(own, "decoder_transformer."), len(own["mlp.fc1.weight"])


def _stage(
    source: str, own: dict[str, Tensor], index: int, head: str, channels: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return a decoder as a stage, its entry and its head.

    Its positions are of the row and then of the column, ours of the column and then of the row. Where the halves of
    all the decoder's channels are exchanged, they are the same, and so is what it computes.
    """
    table = own.pop("pos_emb")
    exchanged = torch.arange(table.shape[1]).roll(table.shape[1] // 2)
    if not are_sincos(table.flatten(2)[0].T[:, exchanged], (table.shape[2], table.shape[3])):
        raise other_positions(source)
    whose = {ours: own.pop(f"task_embeddings.{theirs}", None) for theirs, ours in GRANULARITIES.items()}
    tensors: dict[str, Tensor] = {}
    if len(channels) > 1:
        blank = table.new_zeros(1, 1, table.shape[1])
        each = [blank if (tensor := whose[name]) is None else tensor for name in channels]
        tensors[f"decoder.entries.{index}.granularity"] = torch.cat(each)[:, :, exchanged]
    for name, tensor in own.items():
        old = next((each for each in _WORDS if name.startswith(each)), None)
        if old is None:
            raise UserError(f"{source}: {name} has no place in a decoder of ours")
        if old == "out_proj.":  # channels, rows, columns: ours has rows, columns, channels
            tensor = tensor.unflatten(0, (channels[head.partition("_")[0]], -1)).transpose(0, 1).flatten(0, 1)
        if not name.endswith(_APART):
            tensor = tensor.flatten() if old == "mask_token" else tensor
            tensor = tensor.index_select(1 if name.endswith(_READ) else 0, exchanged)
        tensors[_WORDS[old].format(index=index, head=head) + name.removeprefix(old)] = tensor
    return tensors
