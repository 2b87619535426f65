"""The samples of each batch: a function of (seed, epoch, batch), the same for any number of ranks and workers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed

SampleDraws = Int64[np.ndarray, "rows 2"]
"""Index of a sample, and the number of its repetition in this epoch."""

SampleSizes = Int64[np.ndarray, "rows 2"]
"""Height and width of samples."""

PredictSizes = Callable[[int, SampleDraws], SampleSizes]
"""A function from an epoch and some of its draws to the sizes of their samples."""

_BATCHES_PER_GROUP = (
    64  # fewer would leave more padding: 9 % instead of 18 % with 16 images in a batch and DETR's crops
)


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
    predict_sizes: PredictSizes | None = None
    """With it, a batch has samples of similar height and width, so that little of it is padding: the samples of 64
    batches of the random order are sorted into batches, which then have a random order too."""

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
        if self.predict_sizes is not None and (self.repeats > 1 or not self.shuffle):
            raise UserError("predict_sizes: expected shuffle and repeats=1, since batches are made by size")
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
        draws = np.stack([order[slots // self.repeats], slots % self.repeats], axis=1)
        return draws if self.predict_sizes is None else self._group_by_size(epoch, draws)

    def _group_by_size(self, epoch: int, draws: SampleDraws) -> SampleDraws:
        """Return the draws with the samples of consecutive batches exchanged, so that a batch has similar sizes."""
        assert self.predict_sizes is not None
        rng = np.random.default_rng(derive_seed(self.seed, "batches", epoch))
        size = self.batch_size
        grouped = [draws[:0]]
        for first in range(0, len(draws) // size * size, size * _BATCHES_PER_GROUP):
            group = draws[first : min(first + size * _BATCHES_PER_GROUP, len(draws) // size * size)]
            order = split_by_size(self.predict_sizes(epoch, group), size)
            batches = group[order].reshape(-1, size, 2)
            grouped.append(batches[rng.permutation(len(batches))].reshape(-1, 2))
        return np.concatenate([*grouped, draws[len(draws) // size * size :]])

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


def split_by_size(sizes: SampleSizes, batch_size: int) -> Int64[np.ndarray, " rows"]:
    """Return an order of samples in which each `batch_size` in turn have similar heights and widths.

    The samples are halved where their sides differ most, again and again, as in a k-d tree; their number must be a
    multiple of `batch_size`.
    """
    return _split_rows(sizes, np.arange(len(sizes)), batch_size)


def _split_rows(
    sizes: Int64[np.ndarray, "samples 2"], rows: Int64[np.ndarray, " rows"], batch_size: int
) -> Int64[np.ndarray, " rows"]:
    num_batches = len(rows) // batch_size
    if num_batches <= 1:
        return rows
    ratios = sizes[rows].max(axis=0) / sizes[rows].min(axis=0)
    by_side = rows[sizes[rows, int(ratios[1] > ratios[0])].argsort(kind="stable")]
    middle = num_batches // 2 * batch_size
    halves = (by_side[:middle], by_side[middle:])
    return np.concatenate([_split_rows(sizes, half, batch_size) for half in halves])


def sample_generator(seed: int, epoch: int, index: int, repetition: int) -> np.random.Generator:
    """Return the generator from which everything random about a sample is drawn."""
    return np.random.default_rng(derive_seed(seed, "view", epoch, index, repetition))


@dataclass(frozen=True)
class SizePredictor:
    """Predicts the sizes of the samples of an epoch from those of the images and from the generator of each sample."""

    draw_size: Callable[[tuple[int, int], np.random.Generator], tuple[int, int]]
    """A method of a view that returns the height and width of the view of an image, by those of the image."""
    image_sizes: SampleSizes
    """Height and width of each image of the data."""
    seed: int

    def __call__(self, epoch: int, draws: SampleDraws) -> SampleSizes:
        """Return the height and width of samples."""
        sizes = [
            self.draw_size(
                (int(self.image_sizes[index, 0]), int(self.image_sizes[index, 1])),
                sample_generator(self.seed, epoch, index, repetition),
            )
            for index, repetition in draws.tolist()
        ]
        return np.array(sizes, np.int64).reshape(-1, 2)
