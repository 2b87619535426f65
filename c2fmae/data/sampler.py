"""The samples of each batch: a function of (seed, epoch, batch), the same for any number of ranks and workers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed

SampleDraws = Int64[np.ndarray, "rows 2"]
"""Index of a sample, and the number of its repetition in this epoch."""


@dataclass(frozen=True)
class DataPosition:
    """Position of a run in the data, from which it can be resumed exactly."""

    epoch: int = 0
    batches_done: int = 0
    """Batches of this epoch that are done."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler of global batches in one order per epoch, of which each rank gets its rows.

    With `shuffle`, an epoch ends with the last full batch; the samples left out differ from epoch to epoch. Without it,
    for evaluation, the last batch may be smaller.
    """

    num_samples: int
    batch_size: int
    """Samples in a batch of all ranks together."""
    seed: int = 0
    shuffle: bool = True
    repeats: int = 1
    """Different views of a sample in a batch (repeated augmentation); the length of an epoch does not change."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "world_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.rank not in range(self.world_size):
            raise UserError(f"rank: expected 0 to {self.world_size - 1}, got {self.rank}")
        if self.repeats > 1 and not self.shuffle:
            raise UserError(f"repeats: expected 1 without shuffle, got {self.repeats}")
        if self.batch_size % self.world_size:
            raise UserError(
                f"batch_size: expected a multiple of the {self.world_size} processes, got {self.batch_size}"
            )
        if self.batch_size % self.repeats:
            raise UserError(f"repeats: expected a divisor of the batch size {self.batch_size}, got {self.repeats}")
        if self.shuffle and self.num_samples < self.batch_size:
            raise UserError(
                f"batch_size: expected at most the {self.num_samples} samples of the data, got {self.batch_size}"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.num_samples // self.batch_size if self.shuffle else -(-self.num_samples // self.batch_size)

    def epoch_draws(self, epoch: int) -> SampleDraws:
        """Return the draws of an epoch for all ranks."""
        if not self.shuffle:
            order = np.arange(self.num_samples)
        else:
            order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.num_samples)
        slots = np.arange(self.num_samples)
        return np.stack([order[slots // self.repeats], slots % self.repeats], axis=1)

    def iterate_batches(self, start: DataPosition, epochs: int) -> Iterator[tuple[DataPosition, SampleDraws]]:
        """Yield (position, this rank's draws) from a position to the end of the last epoch.

        Without `shuffle`, the last batch may have no rows for some ranks, which then get one batch less.
        """
        if not 0 <= start.batches_done <= len(self):
            raise UserError(
                f"position: expected at most {len(self)} batches of epoch {start.epoch}, got {start.batches_done}."
                " Resume with the same data and batch size"
            )
        for epoch in range(start.epoch, epochs):
            draws = self.epoch_draws(epoch)
            for batch in range(start.batches_done if epoch == start.epoch else 0, len(self)):
                rows = draws[batch * self.batch_size : (batch + 1) * self.batch_size]
                rank_rows = np.array_split(rows, self.world_size)[self.rank]
                if len(rank_rows):
                    yield DataPosition(epoch, batch), rank_rows

    def next_position(self, position: DataPosition) -> DataPosition:
        """Return the position after the next batch."""
        if position.batches_done + 1 < len(self):
            return replace(position, batches_done=position.batches_done + 1)
        return DataPosition(position.epoch + 1)
