"""Which samples make up which batch: a function of (seed, epoch, batch), never of history, ranks or workers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed

SampleDraws = Int64[np.ndarray, "rows 2"]
"""Index of a sample, and which of its repetitions in this epoch it is."""


@dataclass(frozen=True)
class DataPosition:
    """How far a run has come: all that there is to remember for an exact resume."""

    epoch: int = 0
    batches_done: int = 0
    """In this epoch."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Global batches of one order a epoch, of which each rank takes its rows.

    Shuffled, an epoch ends with the last whole batch: what is left over differs from epoch to epoch. In order, for
    evaluation, its last batch is what is left.
    """

    num_samples: int
    batch_size: int
    """Of all ranks together."""
    seed: int = 0
    shuffle: bool = True
    repeats: int = 1
    """Views of a sample in a batch, each different (repeated augmentation); an epoch is as long with it as without."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "world_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.rank not in range(self.world_size):
            raise UserError(f"rank: expected 0 to {self.world_size - 1}, got {self.rank}")
        if self.repeats > 1 and not self.shuffle:
            raise UserError("repeats: in order, for evaluation, every sample comes once")
        if self.batch_size % self.world_size:
            raise UserError(f"batch_size: {self.batch_size} cannot be divided among {self.world_size} processes")
        if self.batch_size % self.repeats:
            raise UserError(f"repeats: {self.repeats} does not divide the batch size, {self.batch_size}")
        if self.shuffle and self.num_samples < self.batch_size:
            raise UserError(f"batch_size: {self.batch_size} is more than the {self.num_samples} samples that there are")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.num_samples // self.batch_size if self.shuffle else -(-self.num_samples // self.batch_size)

    def epoch_draws(self, epoch: int) -> SampleDraws:
        """Return all draws of an epoch, of all ranks."""
        if not self.shuffle:
            order = np.arange(self.num_samples)
        else:
            order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.num_samples)
        slots = np.arange(self.num_samples)
        return np.stack([order[slots // self.repeats], slots % self.repeats], axis=1)

    def iterate_batches(self, start: DataPosition, epochs: int) -> Iterator[tuple[DataPosition, SampleDraws]]:
        """Yield (position, this rank's draws) from a position on to the end of the last epoch.

        In order, the last batch may have no rows for some ranks, which then have a batch less.
        """
        if not 0 <= start.batches_done <= len(self):
            raise UserError(
                f"position: {start.batches_done} batches of epoch {start.epoch} are said to be done, of {len(self)}."
                " Resume with the data and the batch size of before"
            )
        for epoch in range(start.epoch, epochs):
            draws = self.epoch_draws(epoch)
            for batch in range(start.batches_done if epoch == start.epoch else 0, len(self)):
                rows = draws[batch * self.batch_size : (batch + 1) * self.batch_size]
                rank_rows = np.array_split(rows, self.world_size)[self.rank]
                if len(rank_rows):
                    yield DataPosition(epoch, batch), rank_rows

    def next_position(self, position: DataPosition) -> DataPosition:
        """Return the position one batch on."""
        if position.batches_done + 1 < len(self):
            return replace(position, batches_done=position.batches_done + 1)
        return DataPosition(position.epoch + 1)
