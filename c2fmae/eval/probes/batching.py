"""In which order rows are learned from, and which of them are only tried on."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed

VALIDATION_DIVISOR = 5
"""Of so many photos one is held out; with fewer there is none."""


def num_batches(num_rows: int, batch_size: int) -> int:
    """Return how many batches an epoch has."""
    return math.ceil(num_rows / batch_size)


def shuffled_batches(
    rows: Int64[Tensor, " row"], *, epochs: int, batch_size: int, seed: int
) -> Iterator[Int64[Tensor, " part"]]:
    """Return all batches of all epochs: each epoch has every row once, in batches as equal as can be.

    >>> [batch.tolist() for batch in shuffled_batches(torch.tensor([3, 5, 8]), epochs=2, batch_size=2, seed=0)]
    [[5, 8], [3], [3, 5], [8]]
    """
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "probe batches", epoch))
        order = torch.randperm(len(rows), generator=generator)
        yield from rows[order].tensor_split(num_batches(len(rows), batch_size))


def split_training_validation(
    rows: Int64[Tensor, " row"], *, seed: int, rows_per_image: int = 1
) -> tuple[Int64[Tensor, " rest"], Int64[Tensor, " held_out"]]:
    """Return rows to learn from, and those of a fifth of the photos to choose settings by; both in order.

    Row r is of photo r // rows_per_image: what shows the same photo stays together. The fifth is drawn at random, since
    every fifth photo of a set that goes through its labels in turn may show the same thing.
    """
    photos, image_of_row = (rows // rows_per_image).unique(return_inverse=True)
    if len(photos) < VALIDATION_DIVISOR:
        raise UserError(
            f"a probe needs at least {VALIDATION_DIVISOR} training photos, one of them to choose settings by, got "
            f"{len(photos)}"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "held out"))
    is_validation = (torch.randperm(len(photos), generator=generator) < len(photos) // VALIDATION_DIVISOR)[image_of_row]
    return rows[~is_validation], rows[is_validation]
