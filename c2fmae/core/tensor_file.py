"""Safetensors files, written from and read into the memory of tensors, with a checksum computed on the way.

The writer of the safetensors library copies all tensors into one bytes object and holds the interpreter lock
meanwhile, which would slow down the training that continues during a save. The library reads these files.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file

_DTYPE_TO_NAME = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NAME_TO_DTYPE = {name: dtype for dtype, name in _DTYPE_TO_NAME.items()}
_CHUNK_SIZE = 1 << 20  # bytes; small enough to stay in the CPU cache between checksum and file


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a file and return its SHA-256, which is twice as fast as BLAKE2 on CPUs with SHA instructions."""
    header: dict[str, Any] = dict.fromkeys(["__metadata__", *tensors])
    header["__metadata__"] = {"format": "pt"}
    file_order = sorted(tensors, key=lambda name: -tensors[name].itemsize)  # aligns every element to its size
    end = 0
    for name in file_order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.itemsize
        header[name] = {
            "dtype": _DTYPE_TO_NAME[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksum = hashlib.sha256()
    with path.open("wb") as file:
        for data in [memoryview(len(text).to_bytes(8, "little")), memoryview(text)]:
            _write(file, data, checksum)
        for name in file_order:
            _write(file, _as_bytes(tensors[name].detach().contiguous()), checksum)
    return checksum.hexdigest()


def read_tensors(path: Path, checksum: str) -> dict[str, Tensor]:
    """Read a file. Raise a `UserError` if its checksum differs, or if its header does not match its data."""
    digest, header_error = hashlib.sha256(), ""
    tensors: dict[str, Tensor] = {}
    with open_file(path, buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(_read(file, 8, digest), "little")
        try:
            header = _read(file, min(length, size), digest)
            for name, dtype, shape in _parse_header(header, size - 8 - length):
                tensors[name] = torch.empty(shape, dtype=dtype)
                _read_into(file, _as_bytes(tensors[name]), digest)
            tensors = {name: tensors[name] for name in json.loads(header) if name in tensors}
        except OSError:
            raise
        except Exception as error:  # an invalid header raises many types
            header_error = str(error)
        while _read(file, _CHUNK_SIZE, digest):
            pass
    if digest.hexdigest() != checksum:
        raise UserError(f"{path}: is damaged: its checksum is not the one stored when it was written")
    if header_error:
        raise UserError(f"{path}: its header does not match its content: {header_error}")
    return tensors


def _parse_header(header: bytes, size: int) -> Iterator[tuple[str, torch.dtype, list[int]]]:
    """Yield the tensors of a header in the order of their data, which must fill the file without gaps or overlaps."""
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        dtype, shape = _NAME_TO_DTYPE.get(entry["dtype"]), entry["shape"]
        if dtype is None:
            raise ValueError(f"{name} has an unsupported dtype, {entry['dtype']}")
        if begin != end or stop > size or stop - begin != prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"{name} of shape {shape} cannot be at bytes {begin} to {stop} of {size}")
        end = stop
        yield name, dtype, shape
    if end != size:
        raise ValueError(f"the last {size - end} bytes belong to no tensor")


def _as_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _write(file: BinaryIO, data: memoryview, checksum: Any) -> None:
    for start in range(0, len(data), _CHUNK_SIZE):
        chunk = data[start : start + _CHUNK_SIZE]
        checksum.update(chunk)
        file.write(chunk)


def _read(file: Any, size: int, checksum: Any) -> bytes:
    data = file.read(size)
    checksum.update(data)
    return bytes(data)


def _read_into(file: Any, data: memoryview, checksum: Any) -> None:
    while data:
        count = file.readinto(data[:_CHUNK_SIZE])
        if not count:
            raise ValueError("the file is truncated")
        checksum.update(data[:count])
        data = data[count:]
