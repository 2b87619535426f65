"""A list of names in two arrays, for millions of samples."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import Int64, Integer, UInt8
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file, write_atomic

_NEWLINE = 10


def is_utf8(name: str) -> bool:
    """Return whether a name can be encoded as UTF-8: file systems and tars allow any bytes."""
    return name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name)


def read_keys(path: Path) -> list[str]:
    """Return the keys of a text file, one per line; empty lines are skipped."""
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fix = "Write it with `c2fmae data check SOURCE --fix-list FILE`"
        raise UserError(f"{path}: is not UTF-8 text ({error}). {fix}") from error
    return [key for key in text.split("\n") if key]  # unlike splitlines, keeps other line separators inside a key


def write_keys(path: Path, keys: Iterable[str]) -> None:
    """Write keys to a text file, one per line."""
    write_atomic(path, "".join(f"{key}\n" for key in keys).encode())


class KeyList(Sequence[str]):
    """An immutable list of names that worker processes share.

    A list of a million Python strings would be copied into every worker, page by page, as their reference counts
    change. These are two tensors, which spawned processes get through shared memory and forked ones without a copy.

    >>> keys = KeyList.from_names(["cat", "dog", "cow"])
    >>> keys[1], len(keys), list(keys.select(np.array([2, 0])))
    ('dog', 3, ['cow', 'cat'])
    """

    def __init__(self, encoded: bytes) -> None:
        """Create a list from UTF-8 names that each end with a newline."""
        self._text: UInt8[Tensor, " bytes"] = torch.frombuffer(bytearray(encoded or b" "), dtype=torch.uint8)
        self._ends: Int64[Tensor, " keys"] = torch.from_numpy(np.flatnonzero(self._text.numpy() == _NEWLINE))

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "KeyList":
        """Create a list from names without newlines."""
        texts = names if isinstance(names, list) else list(names)
        return cls(("\n".join(texts) + "\n").encode() if texts else b"")

    @property
    def encoded(self) -> bytes:
        """All names, each followed by a newline."""
        return self._text.numpy().tobytes() if len(self) else b""

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "KeyList": ...
    def __getitem__(self, index: int | slice) -> "str | KeyList":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        ends = self._ends.numpy()
        start = ends[index - 1] + 1 if index else 0
        return self._text.numpy()[start : ends[index]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self.encoded.decode().split("\n")[:-1])

    def select(self, rows: Integer[np.ndarray, " rows"]) -> "KeyList":
        """Return the names at the given indices."""
        names = list(self)
        return KeyList.from_names(names[row] for row in rows)
