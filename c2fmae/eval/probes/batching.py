"""Batches of training rows for probes, and their validation split."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed

VALIDATION_DIVISOR = 5
"""One in this number of images is used for validation."""


def num_batches(num_rows: int, batch_size: int) -> int:
    """Return the number of batches of an epoch."""
    return math.ceil(num_rows / batch_size)


def shuffled_batches(
    rows: Int64[Tensor, " row"], *, epochs: int, batch_size: int, seed: int
) -> Iterator[Int64[Tensor, " batch_row"]]:
    """Yield shuffled batches: each epoch has every row once, in batches whose sizes differ by at most one.

    >>> [batch.tolist() for batch in shuffled_batches(torch.tensor([3, 5, 8]), epochs=2, batch_size=2, seed=0)]
    [[5, 8], [3], [3, 5], [8]]
    """
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "probe batches", epoch))
        order = torch.randperm(len(rows), generator=generator)
        yield from rows[order].tensor_split(num_batches(len(rows), batch_size))


def split_training_validation(
    rows: Int64[Tensor, " row"], *, seed: int, rows_per_image: int = 1
) -> tuple[Int64[Tensor, " training_row"], Int64[Tensor, " validation_row"]]:
    """Split rows into those to train on and those of a fifth of the images to choose settings on, both sorted.

    Row r belongs to image r // rows_per_image, and all rows of an image are in the same split. The fifth is drawn at
    random because labels may alternate in a fixed order, so that every fifth image would have the same label.
    """
    images, image_of_row = (rows // rows_per_image).unique(return_inverse=True)
    if len(images) < VALIDATION_DIVISOR:
        raise UserError(
            f"train: expected at least {VALIDATION_DIVISOR} images, one of them to choose settings on, got "
            f"{len(images)}. Use more images"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "held out"))
    is_validation = (torch.randperm(len(images), generator=generator) < len(images) // VALIDATION_DIVISOR)[image_of_row]
    return rows[~is_validation], rows[is_validation]
