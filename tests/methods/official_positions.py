"""The fixed position embeddings of MAE and MultiMAE, computed as in their official code."""

import numpy as np
import torch
from torch import Tensor


def official_sincos_table(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the table [patches, dim]; the official code swaps rows and columns, and its weights depend on that."""
    columns, rows = np.meshgrid(np.arange(grid[1], dtype=np.float64), np.arange(grid[0], dtype=np.float64))
    omega = 1 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    angles = [np.outer(axis.reshape(-1), omega) for axis in (columns, rows)]
    return torch.from_numpy(np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], 1)).float()
