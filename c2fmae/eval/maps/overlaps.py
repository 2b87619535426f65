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
    pairs: Int64[np.ndarray, "rows columns"]
    """The position in the flattened `counts` of each pixel's ids."""


@dataclass(frozen=True)
class IndexedIds:
    """The ids of a map, for overlaps with several others."""

    ids: Int64[np.ndarray, " ids"]
    """Those that occur, ascending."""
    indices: Int64[np.ndarray, "rows columns"]
    """The index in `ids` of each pixel."""


def count_overlaps(
    first: Integer[Tensor, "rows columns"] | IndexedIds, second: Integer[Tensor, "rows columns"]
) -> OverlapTable:
    """Count the pixels of each pair of ids, such as those of a true and of a predicted object.

    >>> import torch
    >>> table = count_overlaps(torch.tensor([[0, 7, 7]]), torch.tensor([[0, 0, 3]]))
    >>> table.first_ids.tolist(), table.second_ids.tolist(), table.counts.tolist()
    ([0, 7], [0, 3], [[1, 0], [1, 1]])
    """
    rows, columns = (each if isinstance(each, IndexedIds) else index_ids(each) for each in (first, second))
    if rows.indices.shape != columns.indices.shape:
        raise ValueError(f"the maps differ in size: {rows.indices.shape} and {columns.indices.shape}")
    shape = len(rows.ids), len(columns.ids)
    pairs = rows.indices * shape[1] + columns.indices
    counts = np.bincount(pairs.reshape(-1), minlength=shape[0] * shape[1]).reshape(shape)
    return OverlapTable(counts, rows.ids, columns.ids, pairs)


def index_ids(ids: Integer[Tensor, "rows columns"]) -> IndexedIds:
    """Return the ids that occur, and the index of each pixel's. Faster than a sort of the pixels."""
    values = ids.cpu().numpy()
    if not values.size:
        return IndexedIds(np.zeros(0, np.int64), values.astype(np.int64))
    if values.min() < 0:
        raise ValueError(f"expected ids from 0 on, got {values.min()}")
    occurs = np.zeros(int(values.max()) + 1, np.bool_)
    occurs[values] = True
    return IndexedIds(np.flatnonzero(occurs), np.take(np.cumsum(occurs) - 1, values))
