"""Sorting of integers by row. On a CPU, NumPy does it in vector registers, 5 times as fast as torch on one thread."""

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from c2fmae.masking._checks import can_read_values


def sort_rows(keys: Integer[Tensor, "batch key"]) -> Integer[Tensor, "batch key"]:
    """Return every row in ascending order."""
    if can_read_values(keys):
        return torch.from_numpy(np.sort(keys.numpy(), axis=1))
    return keys.sort(dim=1).values


def sort_rows_with_order(
    keys: Int64[Tensor, "batch key"],
) -> tuple[Int64[Tensor, "batch key"], Int64[Tensor, "batch key"]]:
    """Return every row in ascending order, and the index of each key; equal keys are in order of their index."""
    if can_read_values(keys) and keys.numel():
        bits = (keys.shape[1] - 1).bit_length()
        low, high = keys.aminmax()
        if -(1 << 63 - bits) <= low and high < 1 << 63 - bits:  # key and index fit 64 bits together
            both = sort_rows((keys << bits).add_(torch.arange(keys.shape[1])))
            return both >> bits, both & ((1 << bits) - 1)
    ordered, order = keys.sort(dim=1, stable=True)
    return ordered, order
