"""Compilation with `torch.compile`.

What is compiled has static shapes, those of a micro-batch, so each graph is compiled once for each image size of a run.
Evaluations, with their other batch sizes, run eagerly.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import ParamSpec, TypeVar, cast

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir as temporary_cache_dir

from c2fmae.core.files import default_cache_dir
from c2fmae.core.layers import list_blocks
from c2fmae.core.training import CompiledParts

P = ParamSpec("P")
T = TypeVar("T")

KERNEL_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compile_model(model: nn.Module, compiled_parts: CompiledParts, *, num_shapes: int = 1) -> None:
    """Compile the blocks of a model, or all of it, in place: names in its state dict stay the same.

    Nothing is compiled before the first call. `num_shapes` is the number of different shapes of micro-batches.
    """
    if compiled_parts == "off":
        return
    _cache_kernels()
    modules = list_blocks(model) if compiled_parts == "blocks" else [model]
    if compiled_parts == "blocks":  # DDP would split their graphs at its buckets, but blocks are small already
        torch._dynamo.config.optimize_ddp = False
    # Blocks of equal structure share a graph, but with drop path each has a rate of its own, and so a graph of its own.
    torch._dynamo.config.recompile_limit += len(modules) * num_shapes
    for module in modules:
        module.compile(dynamic=False, fullgraph=True)


def compile_function(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that is compiled as one graph, for inputs whose shapes do not change."""
    return cast(Callable[P, T], torch.compile(function, dynamic=False, fullgraph=True))


def run_eagerly() -> AbstractContextManager[None]:
    """Return a context in which compiled models and functions run as if they were not compiled."""
    return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))


def _cache_kernels() -> None:
    """Let torch cache kernels in the user's cache directory; its default is a temporary one, which nodes clear.

    If that directory is not writable, the default stays.
    """
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home directory
        directory = default_cache_dir() / "inductor"
        directory.mkdir(parents=True, exist_ok=True)
        is_chosen = os.environ.get(KERNEL_CACHE_VARIABLE) not in (None, temporary_cache_dir())  # torch sets its default
        if os.access(directory, os.W_OK) and not is_chosen:
            os.environ[KERNEL_CACHE_VARIABLE] = str(directory)
