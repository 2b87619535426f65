"""Reader of files of MultiMAE's official code: an encoder with an adapter for each input and output."""

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
"""From MultiMAE's tasks to granularities, in the order of c2fmae's tokens."""


def read_multimae(source: str, weights: WeightFile, *, num_heads: int | None = None) -> SourceContents:
    """Return the encoder and input embeddings in a file of MultiMAE."""
    multimae_tensors, notes = weights.tensors, list(weights.notes)
    tasks = _list_tasks(source, multimae_tensors)
    if not tasks:
        raise UserError(f"{source}: has no input adapters of MultiMAE. If it is a file of MAE, use: c2fmae import mae")
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
                part: multimae_tensors[f"{INPUT_ADAPTER_PREFIX}{task}.{part}"] for part in ("proj.weight", "proj.bias")
            }
        tensors |= {f"embeddings.{name}.{part}": tensor for part, tensor in embedding_tensors.items()}
    table, table_size = _read_positions(source, multimae_tensors, tasks, patch)
    token = _get_tensor(source, multimae_tensors, "global_tokens")
    if token.shape[1] != 1:
        raise UserError(f"{source}: has {token.shape[1]} global tokens, expected 1. Use another file")
    tensors |= {"encoder.cls_token": token, "encoder.pos_embed": table}
    for name, tensor in multimae_tensors.items():
        if name.startswith("encoder."):
            tensors[f"encoder.blocks.{name.removeprefix('encoder.')}"] = tensor
        elif not name.startswith((INPUT_ADAPTER_PREFIX, "output_adapters.", "global_tokens")):
            tensors[name] = tensor  # reported as unexpected
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
    """Return the number of classes of semantic maps; a last row of zeros is for unlabelled pixels."""
    rows = weights[f"{INPUT_ADAPTER_PREFIX}semseg.class_emb.weight"]
    return len(rows) - (not bool(rows[-1].any()))


def _list_tasks(source: str, weights: dict[str, Tensor]) -> list[str]:
    tasks = {name.split(".")[1] for name in weights if name.startswith(INPUT_ADAPTER_PREFIX)}
    if unknown := sorted(tasks - TASK_TO_GRANULARITY.keys()):
        raise UserError(
            f"{source}: has unsupported tasks: {', '.join(unknown)} (supported: {', '.join(TASK_TO_GRANULARITY)}). "
            "Use another file"
        )
    return [task for task in TASK_TO_GRANULARITY if task in tasks]


def _convert_id_embedding(source: str, weights: dict[str, Tensor]) -> tuple[int, int, dict[str, Tensor], str]:
    """Return the patch size, classes and tensors of an embedding of semantic maps, and a note on unlabelled cells."""
    name = f"{INPUT_ADAPTER_PREFIX}semseg.proj.weight"
    if f"{INPUT_ADAPTER_PREFIX}semseg.proj.1.weight" in weights:
        raise UserError(
            f"{source}: averages the classes of a patch before projecting, which is not supported. Use another file"
        )
    _, _, cells = infer_patch_embed(source, name, _get_tensor(source, weights, name))
    patch = next((side for side in (4 * cells, 2 * cells, cells) if side // label_stride(side) == cells), cells)
    rows, classes = (
        _get_tensor(source, weights, f"{INPUT_ADAPTER_PREFIX}semseg.class_emb.weight"),
        count_classes(weights),
    )
    note = "unlabelled cells of semantic maps are embedded as zeros, as in its training"
    if classes == len(rows):
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        note = "it has no embedding of unlabelled cells of semantic maps: one of zeros was added"
    embedding_tensors = {
        "classes.weight": rows,
        "proj.weight": weights[name].permute(0, 2, 3, 1).flatten(1),  # from a convolution to a linear layer
        "proj.bias": _get_tensor(source, weights, f"{INPUT_ADAPTER_PREFIX}semseg.proj.bias"),
    }
    return patch, classes, embedding_tensors, note


def _read_positions(
    source: str, weights: dict[str, Tensor], tasks: Sequence[str], patch: int
) -> tuple[Tensor, tuple[int, int]]:
    """Return the position table, which all tasks must share, row by row, and the image size that it is for.

    It has sines and cosines of the row, then of the column, unlike MAE's, so it is loaded as a table.
    """
    tables = {task: _get_tensor(source, weights, f"{INPUT_ADAPTER_PREFIX}{task}.pos_emb") for task in tasks}
    first = tables[tasks[-1]]
    for task, table in tables.items():
        if table.shape != first.shape or not torch.equal(table, first):
            raise UserError(
                f"{source}: the positions of {task} and {tasks[-1]} differ, expected shared ones. Use another file"
            )
    if first.ndim != 4:
        raise UserError(
            f"{source}: {INPUT_ADAPTER_PREFIX}{tasks[-1]}.pos_emb has shape {tuple(first.shape)}, expected "
            "[1, dim, rows, columns]. Use another file"
        )
    return first.flatten(2).transpose(1, 2), (first.shape[2] * patch, first.shape[3] * patch)


def _get_tensor(source: str, weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"{source}: {name} is missing. Use an official file of MultiMAE")
    return weights[name]
