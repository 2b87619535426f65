"""Files of MultiMAE's official code: one encoder, an adapter for everything that goes in or comes out."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.weight_file import WeightFile
from c2fmae.models.backbones.assemble import Found
from c2fmae.models.backbones.infer import depth_of, encoder_of, heads_of, patch_of, statistics
from c2fmae.models.backbones.spec import BackboneSpec
from c2fmae.models.patches import label_stride

MARK = "input_adapters."
GRANULARITIES = {"semseg": "semantic", "depth": "depth", "rgb": "rgb"}
"""Its names for granularities, and ours, in the order of our tokens."""


def read_multimae(source: str, weights: WeightFile, *, num_heads: int | None = None) -> Found:
    """Return what a file of MultiMAE holds of its encoder and of what goes into it."""
    theirs, notes = weights.tensors, list(weights.notes)
    tasks = _tasks_in(source, theirs)
    if not tasks:
        raise UserError(f"{source}: has no input adapters of MultiMAE. If it is MAE's, take: c2fmae import mae")
    patch, channels = 0, dict[str, int]()
    tensors: dict[str, Tensor] = {}
    for task in tasks:
        name = GRANULARITIES[task]
        if task == "semseg":
            patch, channels[name], parts, note = _of_ids(source, theirs)
            notes.append(note)
        else:
            kernel = f"{MARK}{task}.proj.weight"
            _, channels[name], patch = patch_of(source, kernel, _tensor(source, theirs, kernel))
            parts = {each: theirs[f"{MARK}{task}.{each}"] for each in ("proj.weight", "proj.bias")}
        tensors |= {f"embeddings.{name}.{part}": tensor for part, tensor in parts.items()}
    table, table_size = _table(source, theirs, tasks, patch)
    token = _tensor(source, theirs, "global_tokens")
    if token.shape[1] != 1:
        raise UserError(f"{source}: has {token.shape[1]} global tokens. Only one can be read")
    tensors |= {"encoder.cls_token": token, "encoder.pos_embed": table}
    for name, tensor in theirs.items():
        if name.startswith("encoder."):
            tensors[f"encoder.blocks.{name.removeprefix('encoder.')}"] = tensor
        elif not name.startswith((MARK, "output_adapters.", "global_tokens")):
            tensors[name] = tensor  # which has no place, and fails
    heads, said = heads_of(token.shape[2], num_heads)
    encoder = encoder_of(
        source,
        width=token.shape[2],
        depth=depth_of(theirs, "encoder."),
        patch=patch,
        hidden=len(_tensor(source, theirs, "encoder.0.mlp.fc1.weight")),
        num_heads=heads,
    )
    spec = BackboneSpec.read(
        {
            "encoder": encoder.model_copy(update={"has_norm": False}),
            "image_size": table_size,
            "channels": channels,
            **statistics(channels.get("rgb", 3)),
        },
        source=source,
    )
    return Found(
        source=source,
        spec=spec,
        tensors=tensors,
        table_size=table_size,
        left=Counter(".".join(name.split(".")[:2]) for name in theirs if name.startswith("output_adapters.")),
        notes=[*notes, *said],
    )


def classes_in(weights: dict[str, Tensor]) -> int:
    """Return how many classes semantic maps have: a last row of zeros is for places that nobody labelled."""
    rows = weights[f"{MARK}semseg.class_emb.weight"]
    return len(rows) - (not bool(rows[-1].any()))


def _tasks_in(source: str, weights: dict[str, Tensor]) -> list[str]:
    found = {name.split(".")[1] for name in weights if name.startswith(MARK)}
    if unknown := sorted(found - GRANULARITIES.keys()):
        raise UserError(f"{source}: learned from {', '.join(unknown)}, which is none of {', '.join(GRANULARITIES)}")
    return [task for task in GRANULARITIES if task in found]


def _of_ids(source: str, weights: dict[str, Tensor]) -> tuple[int, int, dict[str, Tensor], str]:
    """Return patch, classes and tensors of an embedding of semantic maps, and what has been done about unlabelled."""
    name = f"{MARK}semseg.proj.weight"
    if f"{MARK}semseg.proj.1.weight" in weights:
        raise UserError(f"{source}: averages a patch's classes before it projects them. Only cell by cell can be read")
    _, _, cells = patch_of(source, name, _tensor(source, weights, name))
    patch = next((side for side in (4 * cells, 2 * cells, cells) if side // label_stride(side) == cells), cells)
    rows, classes = _tensor(source, weights, f"{MARK}semseg.class_emb.weight"), classes_in(weights)
    note = "its semantic maps have a row of zeros for places that nobody labelled, as they had in its training"
    if classes == len(rows):
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        note = "its semantic maps had no row for places that nobody labelled: they have one of zeros"
    parts = {
        "classes.weight": rows,
        "proj.weight": weights[name].permute(0, 2, 3, 1).flatten(1),  # a convolution over cells is a projection of them
        "proj.bias": _tensor(source, weights, f"{MARK}semseg.proj.bias"),
    }
    return patch, classes, parts, note


def _table(source: str, weights: dict[str, Tensor], tasks: Sequence[str], patch: int) -> tuple[Tensor, tuple[int, int]]:
    """Return the positions, row by row, which all that goes in must share, and the size of the photos they are for.

    They are sines and cosines, but of the row first and then of the column: not MAE's, so they stay a table.
    """
    tables = {task: _tensor(source, weights, f"{MARK}{task}.pos_emb") for task in tasks}
    first = tables[tasks[-1]]
    for task, table in tables.items():
        if table.shape != first.shape or not torch.equal(table, first):
            raise UserError(f"{source}: {task} has other positions than {tasks[-1]}. Only shared ones can be read")
    if first.ndim != 4:
        raise UserError(
            f"{source}: {MARK}{tasks[-1]}.pos_emb is {tuple(first.shape)}, expected [1, dim, rows, columns]"
        )
    return first.flatten(2).transpose(1, 2), (first.shape[2] * patch, first.shape[3] * patch)


def _tensor(source: str, weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"{source}: lacks {name}, which a file of MultiMAE has")
    return weights[name]
