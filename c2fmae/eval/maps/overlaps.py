"""Numbers of pixels that pairs of ids of two maps share."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer
from torch import Tensor


@dataclass(frozen=True)
class OverlapTable:
    """The number of pixels of each pair of ids in two maps of an image."""

    counts: Int64[np.ndarray, "first second"]
    first_ids: Int64[np.ndarray, " first"]
    """The ids that occur in the first map, ascending."""
    second_ids: Int64[np.ndarray, " second"]
    first_indices: Int64[np.ndarray, "rows columns"]
    """The index in `first_ids` of each pixel."""
    second_indices: Int64[np.ndarray, "rows columns"]


def count_overlaps(first: Integer[Tensor, "rows columns"], second: Integer[Tensor, "rows columns"]) -> OverlapTable:
    """Count the pixels of each pair of ids, such as those of a true and of a predicted object.

    >>> import torch
    >>> table = count_overlaps(torch.tensor([[0, 7, 7]]), torch.tensor([[0, 0, 3]]))
    >>> table.first_ids.tolist(), table.second_ids.tolist(), table.counts.tolist()
    ([0, 7], [0, 3], [[1, 0], [1, 1]])
    """
    if first.shape != second.shape:
        raise ValueError(f"the maps differ in size: {tuple(first.shape)} and {tuple(second.shape)}")
    (first_ids, first_indices), (second_ids, second_indices) = _index_ids(first), _index_ids(second)
    shape = len(first_ids), len(second_ids)
    pairs = first_indices * shape[1] + second_indices
    counts = np.bincount(pairs.reshape(-1), minlength=shape[0] * shape[1]).reshape(shape)
    return OverlapTable(counts, first_ids, second_ids, first_indices, second_indices)


def _index_ids(
    ids: Integer[Tensor, "rows columns"],
) -> tuple[Int64[np.ndarray, " ids"], Int64[np.ndarray, "rows columns"]]:
    """Return the ids that occur, and the index of each pixel's. Faster than a sort of the pixels."""
    values = ids.cpu().numpy().astype(np.int64)
    if not values.size:
        return np.zeros(0, np.int64), values
    if values.min() < 0:
        raise ValueError(f"expected ids from 0 on, got {values.min()}")
    occurs = np.zeros(values.max() + 1, np.bool_)
    occurs[values] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[values]
