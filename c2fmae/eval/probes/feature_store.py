"""Extracted features on disk, in files with a fixed number of scenes each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.eval.cache import corrupted_error, load_slice, load_tensors

_MAX_BYTES_IN_MEMORY = 4 << 30  # larger features are read row by row


@dataclass(frozen=True)
class FeatureStore:
    """Features of scenes, in the order of the scenes."""

    chunk_paths: tuple[Path, ...]
    chunk_size: int
    """Number of scenes in each file except the last."""

    def read_chunk(self, name: object, chunk_index: int) -> Tensor:
        """Return a tensor of one chunk: a column, `patches 12`, `semantic`, `labels` or `photos` (image digests)."""
        return load_tensors(self.chunk_paths[chunk_index], [str(name)])[0]

    def read_rows(self, name: object, rows: range) -> Tensor:
        """Return rows of a tensor that are all in one chunk."""
        chunk_index, first = divmod(rows.start, self.chunk_size)
        stored = load_slice(self.chunk_paths[chunk_index], str(name))
        return stored[first : first + len(rows)]  # type: ignore[no-any-return]

    def read_tensor(self, name: object) -> Tensor:
        """Return a whole tensor, allocated once."""
        shapes = [values.get_shape() for values in self._open_slices(name)]
        first = self.read_chunk(name, 0)
        for chunk_index, shape in enumerate(shapes):
            is_full = shape[0] == self.chunk_size or chunk_index == len(shapes) - 1
            if shape[1:] != shapes[0][1:] or not (is_full and 0 < shape[0] <= self.chunk_size):
                raise corrupted_error(self.chunk_paths[chunk_index])
        tensor = first.new_empty(sum(shape[0] for shape in shapes), *shapes[0][1:])
        for chunk_index, shape in enumerate(shapes):
            start = chunk_index * self.chunk_size
            tensor[start : start + shape[0]] = self.read_chunk(name, chunk_index)
        return tensor

    def make_row_reader(self, name: object) -> Callable[[Int64[Tensor, " row"]], Tensor]:
        """Return a function that reads rows of a tensor, from memory if it is small, or else from the files."""
        if sum(path.stat().st_size for path in self.chunk_paths) <= _MAX_BYTES_IN_MEMORY:
            return self.read_tensor(name).__getitem__
        slices = self._open_slices(name)

        def read(rows: Int64[Tensor, " row"]) -> Tensor:
            positions = (divmod(row, self.chunk_size) for row in rows.tolist())
            return torch.cat([slices[chunk][offset : offset + 1] for chunk, offset in positions])

        return read

    @cached_property
    def labels(self) -> Tensor:
        """The labels of scenes; -1 for scenes without one."""
        return self.read_tensor("labels")

    @cached_property
    def image_digests(self) -> np.ndarray:
        """A digest of each image file."""
        stored = self.read_tensor("photos")
        if stored.ndim != 2 or stored.dtype != torch.uint8:
            raise corrupted_error(self.chunk_paths[0])
        digests = stored.numpy()
        return digests.view(f"V{digests.shape[1]}")[:, 0]

    def _open_slices(self, name: object) -> list[Any]:
        return [load_slice(path, str(name)) for path in self.chunk_paths]
