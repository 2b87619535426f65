"""Instance ids that mean something: by size, the largest object first."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from c2fmae.core.scene import IGNORE

Overflow = Literal["ignore", "background"]


def canonical_instances(
    ids: Integer[Tensor, "height width"], max_ids: int, overflow: Overflow = "ignore"
) -> UInt8[Tensor, "height width"]:
    """Renumber objects 1, 2, … by area, the largest first, ties by the raster position of the first cell.

    Ids come in any order, and a network cannot guess the number of an object that is wholly hidden; its rank by size
    it can. What exceeds `max_ids` - 1 (0 is the background) becomes `overflow`. 0 and 255 stay.

    >>> canonical_instances(torch.tensor([[9, 9, 0], [4, 4, 4], [2, 255, 2]], dtype=torch.uint8), max_ids=3)
    tensor([[  2,   2,   0],
            [  1,   1,   1],
            [255, 255, 255]], dtype=torch.uint8)
    """
    flat = ids.numpy().ravel()
    if flat.dtype != np.uint8:  # ids of any size: number them as they come, so that tables are short
        values, flat = np.unique(flat, return_inverse=True)
    else:
        values = np.arange(256)
    areas = np.bincount(flat, minlength=len(values))
    first = np.empty(len(values), np.int64)
    first[flat[::-1]] = np.arange(len(flat))[::-1]  # of equal places the last assignment stays: the first cell
    is_object = (areas > 0) & (values != 0) & (values != IGNORE)
    present = np.flatnonzero(is_object)
    ranked = present[np.lexsort((first[present], -areas[present]))]
    table = np.where(values == IGNORE, IGNORE, 0).astype(np.uint8)
    table[ranked] = IGNORE if overflow == "ignore" else 0
    kept = ranked[: max_ids - 1]
    table[kept] = np.arange(1, len(kept) + 1)
    return torch.from_numpy(table[flat].reshape(ids.shape))
