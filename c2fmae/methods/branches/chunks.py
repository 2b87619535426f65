"""Micro-batches of methods whose heads or losses compare the images of a batch (GradCache; Gao et al., 2021)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from c2fmae.core.masks import Masks
from c2fmae.methods.branches.model import BranchModel


@contextmanager
def compute_in_chunks(model: BranchModel, num_chunks: int) -> Iterator[None]:
    """Let the encoder and the decoders compute a batch in equal chunks, one after another.

    Their activations are not stored but computed again in the backward pass, so that those of one chunk are in memory.
    All else is computed for the whole batch at once, so heads and losses are the same as without chunks.
    """
    modules = [model.encoder, *(head for head in model.heads.values() if hasattr(head, "blocks"))]
    for module in modules if num_chunks > 1 else []:
        module.forward = partial(_compute_chunks, module.forward, num_chunks)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _compute_chunks(function: Any, num_chunks: int, *inputs: Any) -> Any:
    size = len(inputs[0]) // num_chunks
    chunks = [slice(start, start + size) for start in range(0, len(inputs[0]), size)]
    outputs = [
        checkpoint(function, *(_slice_images(each, chunk) for each in inputs), use_reentrant=False) for chunk in chunks
    ]
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}


def _slice_images(value: Any, images: slice) -> Any:
    """Return the part of an argument that belongs to these images."""
    if isinstance(value, Tensor):
        return value[images]
    if isinstance(value, Masks):
        return value.slice_images(images.start, images.stop)
    return value
