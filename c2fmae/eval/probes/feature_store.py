"""Features as they lie on the disk, in files of so many scenes each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.eval.tensor_cache import open_tensors

_MAX_BYTES_IN_MEMORY = 4 << 30  # bytes of features that are read at once rather than row by row


@dataclass(frozen=True)
class FeatureStore:
    """Features of scenes, in their order."""

    chunk_paths: tuple[Path, ...]
    chunk_size: int
    """Scenes of every file but the last."""

    def read_chunk(self, name: object, chunk_index: int) -> Tensor:
        """Return one file's part of a tensor: that of a column, `patches 12`, `semantic`, `labels`, `photos`."""
        return self._open_chunk(chunk_index).get_tensor(str(name))  # type: ignore[no-any-return]

    def read_rows(self, name: object, rows: range) -> Tensor:
        """Return some rows of a tensor, all of one chunk."""
        chunk_index, first = divmod(rows.start, self.chunk_size)
        stored = self._open_chunk(chunk_index).get_slice(str(name))
        return stored[first : first + len(rows)]  # type: ignore[no-any-return]

    def read_tensor(self, name: object) -> Tensor:
        """Return all of a tensor, with room for it once."""
        shapes = [
            self._open_chunk(chunk_index).get_slice(str(name)).get_shape()
            for chunk_index in range(len(self.chunk_paths))
        ]
        first = self.read_chunk(name, 0)
        tensor = first.new_empty(sum(shape[0] for shape in shapes), *shapes[0][1:])
        for chunk_index, shape in enumerate(shapes):
            start = chunk_index * self.chunk_size
            tensor[start : start + shape[0]] = self.read_chunk(name, chunk_index)
        return tensor

    def make_row_reader(self, name: object) -> Callable[[Int64[Tensor, " row"]], Tensor]:
        """Return what reads rows of a tensor: from memory where all of it fits there, else from where they lie."""
        if sum(path.stat().st_size for path in self.chunk_paths) <= _MAX_BYTES_IN_MEMORY:
            return self.read_tensor(name).__getitem__
        slices = [self._open_chunk(number).get_slice(str(name)) for number in range(len(self.chunk_paths))]

        def read(rows: Int64[Tensor, " row"]) -> Tensor:
            positions = (divmod(row, self.chunk_size) for row in rows.tolist())
            return torch.cat([slices[chunk][place : place + 1] for chunk, place in positions])

        return read

    @cached_property
    def labels(self) -> Tensor:
        """Return the scenes' labels; -1 for those without."""
        return self.read_tensor("labels")

    @cached_property
    def image_digests(self) -> np.ndarray:
        """Return a digest of each photo."""
        digests = self.read_tensor("photos").numpy()
        return digests.view(f"V{digests.shape[1]}")[:, 0]

    def _open_chunk(self, chunk_index: int) -> Any:
        return open_tensors(self.chunk_paths[chunk_index])
