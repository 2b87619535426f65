"""Files of MultiMAE's official code: one encoder, an adapter for everything that goes in or comes out."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.weight_file import WeightFile
from c2fmae.models.backbones.assemble import SourceContents
from c2fmae.models.backbones.infer import (
    count_blocks,
    default_normalisation,
    infer_encoder_config,
    infer_num_heads,
    infer_patch_embed,
)
from c2fmae.models.patches import label_stride

INPUT_ADAPTER_PREFIX = "input_adapters."
TASK_TO_GRANULARITY = {"semseg": "semantic", "depth": "depth", "rgb": "rgb"}
"""Its names for granularities, and ours, in the order of our tokens."""


def read_multimae(source: str, weights: WeightFile, *, num_heads: int | None = None) -> SourceContents:
    """Return what a file of MultiMAE holds of its encoder and of what goes into it."""
    multimae_tensors, notes = weights.tensors, list(weights.notes)
    tasks = _list_tasks(source, multimae_tensors)
    if not tasks:
        raise UserError(f"{source}: has no input adapters of MultiMAE. If it is MAE's, take: c2fmae import mae")
    patch, channels = 0, dict[str, int]()
    tensors: dict[str, Tensor] = {}
    for task in tasks:
        name = TASK_TO_GRANULARITY[task]
        if task == "semseg":
            patch, channels[name], embedding_tensors, note = _convert_id_embedding(source, multimae_tensors)
            notes.append(note)
        else:
            kernel = f"{INPUT_ADAPTER_PREFIX}{task}.proj.weight"
            _, channels[name], patch = infer_patch_embed(source, kernel, _get_tensor(source, multimae_tensors, kernel))
            embedding_tensors = {
                each: multimae_tensors[f"{INPUT_ADAPTER_PREFIX}{task}.{each}"] for each in ("proj.weight", "proj.bias")
            }
        tensors |= {f"embeddings.{name}.{part}": tensor for part, tensor in embedding_tensors.items()}
    table, table_size = _read_positions(source, multimae_tensors, tasks, patch)
    token = _get_tensor(source, multimae_tensors, "global_tokens")
    if token.shape[1] != 1:
        raise UserError(f"{source}: has {token.shape[1]} global tokens. Only one can be read")
    tensors |= {"encoder.cls_token": token, "encoder.pos_embed": table}
    for name, tensor in multimae_tensors.items():
        if name.startswith("encoder."):
            tensors[f"encoder.blocks.{name.removeprefix('encoder.')}"] = tensor
        elif not name.startswith((INPUT_ADAPTER_PREFIX, "output_adapters.", "global_tokens")):
            tensors[name] = tensor  # which has no place, and fails
    heads, head_notes = infer_num_heads(token.shape[2], num_heads)
    encoder = infer_encoder_config(
        source,
        width=token.shape[2],
        depth=count_blocks(multimae_tensors, "encoder."),
        patch=patch,
        mlp_dim=len(_get_tensor(source, multimae_tensors, "encoder.0.mlp.fc1.weight")),
        num_heads=heads,
    )
    spec = BackboneSpec.from_dict(
        {
            "encoder": encoder.model_copy(update={"has_norm": False}),
            "image_size": table_size,
            "channels": channels,
            **default_normalisation(channels.get("rgb", 3)),
        },
        source=source,
    )
    return SourceContents(
        source=source,
        spec=spec,
        tensors=tensors,
        pos_embed_image_size=table_size,
        unused=Counter(
            ".".join(name.split(".")[:2]) for name in multimae_tensors if name.startswith("output_adapters.")
        ),
        notes=[*notes, *head_notes],
    )


def count_classes(weights: dict[str, Tensor]) -> int:
    """Return how many classes semantic maps have: a last row of zeros is for places that nobody labelled."""
    rows = weights[f"{INPUT_ADAPTER_PREFIX}semseg.class_emb.weight"]
    return len(rows) - (not bool(rows[-1].any()))


def _list_tasks(source: str, weights: dict[str, Tensor]) -> list[str]:
    tasks = {name.split(".")[1] for name in weights if name.startswith(INPUT_ADAPTER_PREFIX)}
    if unknown := sorted(tasks - TASK_TO_GRANULARITY.keys()):
        raise UserError(
            f"{source}: learned from {', '.join(unknown)}, which is none of {', '.join(TASK_TO_GRANULARITY)}"
        )
    return [task for task in TASK_TO_GRANULARITY if task in tasks]


def _convert_id_embedding(source: str, weights: dict[str, Tensor]) -> tuple[int, int, dict[str, Tensor], str]:
    """Return patch, classes and tensors of an embedding of semantic maps, and what has been done about unlabelled."""
    name = f"{INPUT_ADAPTER_PREFIX}semseg.proj.weight"
    if f"{INPUT_ADAPTER_PREFIX}semseg.proj.1.weight" in weights:
        raise UserError(f"{source}: averages a patch's classes before it projects them. Only cell by cell can be read")
    _, _, cells = infer_patch_embed(source, name, _get_tensor(source, weights, name))
    patch = next((side for side in (4 * cells, 2 * cells, cells) if side // label_stride(side) == cells), cells)
    rows, classes = (
        _get_tensor(source, weights, f"{INPUT_ADAPTER_PREFIX}semseg.class_emb.weight"),
        count_classes(weights),
    )
    note = "its semantic maps have a row of zeros for places that nobody labelled, as they had in its training"
    if classes == len(rows):
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        note = "its semantic maps had no row for places that nobody labelled: they have one of zeros"
    embedding_tensors = {
        "classes.weight": rows,
        "proj.weight": weights[name].permute(0, 2, 3, 1).flatten(1),  # a convolution over cells is a projection of them
        "proj.bias": _get_tensor(source, weights, f"{INPUT_ADAPTER_PREFIX}semseg.proj.bias"),
    }
    return patch, classes, embedding_tensors, note


def _read_positions(
    source: str, weights: dict[str, Tensor], tasks: Sequence[str], patch: int
) -> tuple[Tensor, tuple[int, int]]:
    """Return the positions, row by row, which all that goes in must share, and the size of the photos they are for.

    They are sines and cosines, but of the row first and then of the column: not MAE's, so they stay a table.
    """
    tables = {task: _get_tensor(source, weights, f"{INPUT_ADAPTER_PREFIX}{task}.pos_emb") for task in tasks}
    first = tables[tasks[-1]]
    for task, table in tables.items():
        if table.shape != first.shape or not torch.equal(table, first):
            raise UserError(f"{source}: {task} has other positions than {tasks[-1]}. Only shared ones can be read")
    if first.ndim != 4:
        raise UserError(
            f"{source}: {INPUT_ADAPTER_PREFIX}{tasks[-1]}.pos_emb is {tuple(first.shape)}, expected [1, dim, rows, "
            "columns]"
        )
    return first.flatten(2).transpose(1, 2), (first.shape[2] * patch, first.shape[3] * patch)


def _get_tensor(source: str, weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"{source}: lacks {name}, which a file of MultiMAE has")
    return weights[name]
