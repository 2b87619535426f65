"""Features as they lie on the disk, in files of so many scenes each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from c2fmae.core.errors import UserError

_IN_MEMORY = 4 << 30  # bytes of features that are read at once rather than row by row


@dataclass(frozen=True)
class Extracted:
    """Features of scenes, in their order."""

    chunks: tuple[Path, ...]
    length: int
    """Scenes of every file but the last."""

    def block(self, name: object, number: int) -> Tensor:
        """Return one file's part of a tensor: that of a column, `patches 12`, `semantic`, `labels`, `photos`."""
        return self._open(number).get_tensor(str(name))  # type: ignore[no-any-return]

    def whole(self, name: object) -> Tensor:
        """Return all of a tensor, with room for it once."""
        shapes = [self._open(number).get_slice(str(name)).get_shape() for number in range(len(self.chunks))]
        first = self.block(name, 0)
        whole = first.new_empty(sum(shape[0] for shape in shapes), *shapes[0][1:])
        for number, shape in enumerate(shapes):
            begin = number * self.length
            whole[begin : begin + shape[0]] = self.block(name, number)
        return whole

    def reader(self, name: object) -> Callable[[Int64[Tensor, " row"]], Tensor]:
        """Return what reads rows of a tensor: from memory where all of it fits there, else from where they lie."""
        if sum(path.stat().st_size for path in self.chunks) <= _IN_MEMORY:
            return self.whole(name).__getitem__
        slices = [self._open(number).get_slice(str(name)) for number in range(len(self.chunks))]

        def read(rows: Int64[Tensor, " row"]) -> Tensor:
            places = (divmod(row, self.length) for row in rows.tolist())
            return torch.cat([slices[chunk][place : place + 1] for chunk, place in places])

        return read

    @cached_property
    def labels(self) -> Tensor:
        """Return the scenes' labels; -1 for those without."""
        return self.whole("labels")

    @cached_property
    def photos(self) -> np.ndarray:
        """Return a digest of each photo."""
        digests = self.whole("photos").numpy()
        return digests.view(f"V{digests.shape[1]}")[:, 0]

    def _open(self, number: int) -> Any:
        path = self.chunks[number]
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: is damaged. Remove it: it is made again by the next evaluation") from error
