"""Iteration over a data set, with results that are bitwise equal for any number of processes and workers.

The data is cut into chunks that do not depend on the world size, each rank computes whole chunks (`World.rank_chunks`),
and outputs are combined without rounding: `gather_rows` adds zeros, `sum_outputs` adds integers or few float64s.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.progress import ProgressDisplay
from c2fmae.core.scene import SceneBatch
from c2fmae.core.signals import TestStopped, get_stop_request
from c2fmae.data import CentralView, Scenes
from c2fmae.data.prefetch import prefetch

K = TypeVar("K", bound=Hashable)
B = TypeVar("B")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How items are batched. It only changes the last bits of floating-point results."""

    batch_size: int = 64
    num_workers: int = 2


def split_chunks(chunks: Iterable[range], batch_size: int) -> list[range]:
    """Split each chunk into batches; no batch has rows of two chunks.

    >>> split_chunks([range(0, 3), range(6, 9)], 2)
    [range(0, 2), range(2, 3), range(6, 8), range(8, 9)]
    """
    return [chunk[first : first + batch_size] for chunk in chunks for first in range(0, len(chunk), batch_size)]


def iterate_batches(
    load: Callable[[B], T],
    batches: Sequence[B],
    world: World,
    batching: BatchingConfig,
    *,
    show_progress: bool = True,
) -> Iterator[tuple[B, T]]:
    """Yield each of this rank's batches with its loaded data, prefetched by worker processes.

    The main process shows the progress and the fraction of time spent waiting for data. In a block of `catch_signals`,
    a signal ends the iteration after the current batch. Then all ranks raise `TestStopped`, each after its last batch:
    they meet once, not at every batch.
    """
    loaded = prefetch(
        _BatchLoader(load, batches),
        len(batches),
        num_workers=batching.num_workers,
        pin_memory=world.device.type == "cuda",
    )
    stop, is_stopped = get_stop_request(), False
    is_quiet = not (show_progress and world.is_main and batches)
    with ProgressDisplay(total_steps=len(batches), samples_per_step=batching.batch_size, is_quiet=is_quiet) as progress:
        clock = time.perf_counter()
        for step, (batch, data) in enumerate(zip(batches, loaded, strict=True), start=1):
            if is_stopped := bool(stop):
                break
            wait_seconds = time.perf_counter() - clock
            yield batch, data
            now = time.perf_counter()
            progress.update(step, {}, seconds=now - clock, wait_fraction=wait_seconds / (now - clock))
            clock = now
    if stop is not None and world.all_reduce(torch.tensor(int(is_stopped), device=world.device)):
        raise TestStopped


def gather_rows(outputs: Iterable[tuple[range, Mapping[K, Tensor]]], num_rows: int, world: World) -> dict[K, Tensor]:
    """Return all rows of all tensors, on the CPU of every rank; each output holds some of this rank's rows.

    The rows of other ranks are zeros, so the sum over ranks is exact.
    """
    buffers: dict[K, Tensor] = {}
    for rows, tensors in outputs:
        for name, values in tensors.items():
            if name not in buffers:
                buffers[name] = torch.zeros(num_rows, *values.shape[1:], dtype=values.dtype, device=world.device)
            buffers[name][rows.start : rows.stop] = values
    return _all_reduce(buffers, world)


def sum_outputs(outputs: Iterable[Mapping[K, Tensor]], world: World) -> dict[K, Tensor]:
    """Return the sums of tensors over all outputs of all ranks, on the CPU of every rank."""
    totals: dict[K, Tensor] = {}
    for tensors in outputs:
        for name, values in tensors.items():
            if name not in totals:
                totals[name] = torch.zeros_like(values, device=world.device)
            totals[name] += values.to(world.device)
    return _all_reduce(totals, world)


def _all_reduce(tensors: Mapping[K, Tensor], world: World) -> dict[K, Tensor]:
    """Sum tensors over ranks. A rank without batches adds zeros, shaped as on the main rank, which has a batch."""
    shapes: dict[K, tuple[torch.Size, torch.dtype]] = world.broadcast_object(
        {name: (values.shape, values.dtype) for name, values in tensors.items()}
    )
    return {
        name: world.all_reduce(
            tensors[name] if name in tensors else torch.zeros(shape, dtype=dtype, device=world.device)
        ).cpu()
        for name, (shape, dtype) in shapes.items()
    }


@dataclass(frozen=True)
class BatchReader:
    """Loads batches of scenes, transformed by one view."""

    scenes: Scenes
    view: CentralView
    indices: Sequence[int] | None = None
    """The index of each row's scene. By default, the row."""

    def __call__(self, rows: range) -> SceneBatch:
        """Return the scenes of these rows as a batch."""
        indices = rows if self.indices is None else [self.indices[row] for row in rows]
        return SceneBatch.stack([self.view(self.scenes[index]) for index in indices])


@dataclass(frozen=True)
class _BatchLoader(Generic[B, T]):
    """Loads batches by index, in worker processes."""

    load: Callable[[B], T]
    batches: Sequence[B]

    def __call__(self, index: int) -> T:
        return self.load(self.batches[index])
