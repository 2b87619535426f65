"""Instance ids by size: the largest object is 1."""

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from c2fmae.core.granularity import IGNORE, InstanceOverflow


def renumber_instances(
    ids: Integer[Tensor, "height width"], max_ids: int, overflow: InstanceOverflow = "ignore"
) -> UInt8[Tensor, "height width"]:
    """Renumber objects 1, 2, … by area, the largest first, ties by the raster position of the first cell.

    Stored ids are in arbitrary order, so that the id of a completely hidden object could not be predicted; its rank by
    size can. Ranks above `max_ids` - 1 become `overflow`. The background, 0, and unlabelled cells, 255, stay.

    >>> renumber_instances(torch.tensor([[9, 9, 0], [4, 4, 4], [2, 255, 2]], dtype=torch.uint8), max_ids=3)
    tensor([[  2,   2,   0],
            [  1,   1,   1],
            [255, 255, 255]], dtype=torch.uint8)
    """
    overflow_id = IGNORE if overflow == "ignore" else 0
    cells = ids.numpy()
    data = (cells if cells.dtype == np.uint8 else _narrow_to_uint8(cells, overflow_id)).tobytes()
    areas = np.bincount(np.frombuffer(data, np.uint8), minlength=256).tolist()
    objects = [id_ for id_, area in enumerate(areas) if area and id_ not in (0, IGNORE)]
    objects.sort(key=lambda id_: (-areas[id_], data.index(id_)))
    table = bytearray(256)
    table[IGNORE] = IGNORE
    for rank, id_ in enumerate(objects, start=1):
        table[id_] = rank if rank < max_ids else overflow_id
    # bytes.translate is three times as fast as indexing an array.
    return torch.frombuffer(bytearray(data.translate(table)), dtype=torch.uint8).view(ids.shape)


def _narrow_to_uint8(cells: Integer[np.ndarray, "height width"], overflow_id: int) -> UInt8[np.ndarray, "height width"]:
    """Renumber the 254 largest objects, as many as 8 bits can hold; the others become `overflow_id`."""
    values, firsts, positions, areas = np.unique(cells, return_index=True, return_inverse=True, return_counts=True)
    is_object = (values != 0) & (values != IGNORE)
    ranked = np.lexsort((firsts, -areas, ~is_object))[: IGNORE - 1]
    table = np.full(len(values), overflow_id, np.uint8)
    table[ranked] = np.arange(1, len(ranked) + 1)
    table[values == 0], table[values == IGNORE] = 0, IGNORE
    narrow: UInt8[np.ndarray, "height width"] = table[positions.reshape(cells.shape)]
    return narrow
