"""One pass over a data set, whose result is the same to the bit for any number of processes and workers.

The data is cut into chunks that do not depend on the world size, each rank computes whole chunks (`World.rank_chunks`),
and outputs are put together without rounding: `gather_rows` adds zeros, `sum_outputs` adds integers or few float64s.
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
from c2fmae.data import CentralView, Scenes
from c2fmae.data.prefetch import prefetch

K = TypeVar("K", bound=Hashable)
B = TypeVar("B")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How items are batched; it changes nothing about the result but the last bits of floating point numbers."""

    batch_size: int = 64
    num_workers: int = 2


def split_chunks(chunks: Iterable[range], batch_size: int) -> list[range]:
    """Return the batches of each chunk; none has rows of two chunks.

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
    """Yield each of this rank's batches with what `load` makes of it, prefetched by worker processes.

    The main process shows how many batches are done and how much of the time was spent waiting for data.
    """
    loaded = prefetch(
        _BatchLoader(load, batches),
        len(batches),
        num_workers=batching.num_workers,
        pin_memory=world.device.type == "cuda",
    )
    is_quiet = not (show_progress and world.is_main and batches)
    with ProgressDisplay(total_steps=len(batches), samples_per_step=batching.batch_size, is_quiet=is_quiet) as progress:
        clock = time.perf_counter()
        for step, (batch, data) in enumerate(zip(batches, loaded, strict=True), start=1):
            wait_seconds = time.perf_counter() - clock
            yield batch, data
            now = time.perf_counter()
            progress.update(step, {}, seconds=now - clock, wait_fraction=wait_seconds / (now - clock))
            clock = now


def gather_rows(outputs: Iterable[tuple[range, Mapping[K, Tensor]]], num_rows: int, world: World) -> dict[K, Tensor]:
    """Return all rows of all tensors on the CPU of every rank; each output holds some of this rank's rows.

    The rows of other ranks are zero until they are added, which rounds nothing.
    """
    buffers: dict[K, Tensor] = {}
    for rows, tensors in outputs:
        for name, values in tensors.items():
            if name not in buffers:
                buffers[name] = torch.zeros(num_rows, *values.shape[1:], dtype=values.dtype, device=world.device)
            buffers[name][rows.start : rows.stop] = values
    return _all_reduce(buffers, world)


def sum_outputs(outputs: Iterable[Mapping[K, Tensor]], world: World) -> dict[K, Tensor]:
    """Return the sum of tensors over all outputs of all ranks, on the CPU of every rank."""
    totals: dict[K, Tensor] = {}
    for tensors in outputs:
        for name, values in tensors.items():
            if name not in totals:
                totals[name] = torch.zeros_like(values, device=world.device)
            totals[name] += values.to(world.device)
    return _all_reduce(totals, world)


def _all_reduce(tensors: Mapping[K, Tensor], world: World) -> dict[K, Tensor]:
    """Add tensors over the ranks; one that had no batch adds zeros, shaped as on the main rank, which has the first."""
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
    """Reads scenes by their rows and cuts them all alike."""

    scenes: Scenes
    view: CentralView
    indices: Sequence[int] | None = None
    """The index of each row's scene; the row itself, unless given."""

    def __call__(self, rows: range) -> SceneBatch:
        """Return the scenes of these rows as one batch."""
        indices = rows if self.indices is None else [self.indices[row] for row in rows]
        return SceneBatch.stack([self.view(self.scenes[index]) for index in indices])


@dataclass(frozen=True)
class _BatchLoader(Generic[B, T]):
    """Batches by index, as worker processes are asked for them."""

    load: Callable[[B], T]
    batches: Sequence[B]

    def __call__(self, index: int) -> T:
        return self.load(self.batches[index])
