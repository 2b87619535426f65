"""Reader of weight files from any source, which never runs code in them.

The format is recognised by the first bytes. In files of `torch.save`, only tensors, plain values and
`argparse.Namespace` (in which MAE and MultiMAE store training options) are allowed.
"""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file
from c2fmae.core.json_file import read_json

_CONTAINER_KEYS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")
"""Keys under which files store their state dict, in the order of preference: plain weights before averaged ones."""

_PREFIXES = ("_orig_mod.", "module.", "model.")
"""Prefixes that torch.compile, DistributedDataParallel and training frameworks add to every name."""

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX_FILES = tuple(f"{name}.index.json" for name in _FOLDER_FILES)
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_FIX = "Download it again, or use another file"
_FOREIGN_FORMATS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`",
    b"<": "is HTML or XML, not weights: a download failed. Download it again",
    b"{": "is JSON, not weights. Use its directory, or the file of weights",
    b"\x1f\x8b": "is compressed with gzip. Decompress it with `gunzip`",
    b"\x89HDF": "is an HDF5 file of Keras. Convert it to safetensors",
}


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """Content of a file or directory of weights."""

    tensors: dict[str, Tensor]
    """Tensors by name, without prefixes that all names have."""
    args: Mapping[str, Any]
    """Training options, if the file contains them."""
    notes: tuple[str, ...] = ()
    """Sentences for a load report."""


def read_weight_file(path: str | Path, *, strip_prefixes: bool = True) -> WeightFile:
    """Return the tensors, training options and notes of a file or directory.

    By default, prefixes that all names have, such as `module.`, are removed.
    """
    path = Path(path)
    content = _read_folder(path) if path.is_dir() else _read_file(path)
    notes: list[str] = []
    args: dict[str, Any] = {}
    while isinstance(content, Mapping) and (key := _find_container_key(content)):
        args |= _training_args(content.get("args"))
        others = sorted(str(other) for other in content if other != key)
        notes += [f"loaded from its {key!r}; it also contains {', '.join(others)}"] if others else []
        content = content[key]
    return WeightFile(tensors=_extract_tensors(path, content, strip_prefixes), args=args, notes=tuple(notes))


def _read_file(path: Path) -> Any:
    with open_file(path, fix="Check the path") as file:  # what is below opens the file by itself
        size, head = os.fstat(file.fileno()).st_size, file.read(64)
        if head.startswith(b"PK\x03\x04"):
            _check_zip(path, size)
            return _load_torch(path, mmap=True)  # unused tensors, such as optimiser state, are never read
        if head[8:9] == b"{":
            _check_header(path, size)
            return _load_safetensors(path)
    if head.startswith(b"\x80"):
        return _load_torch(path, mmap=False)
    problem = f"is {'neither safetensors nor a file of torch.save' if head else 'empty'}. Use a file of weights"
    for magic, message in _FOREIGN_FORMATS.items():
        if head.lstrip().startswith(magic):
            problem = message
            break
    raise UserError(f"{path}: {problem}")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # an invalid header raises many types
        raise UserError(f"{path}: its header does not match its content: {_one_line(error)}. {_FIX}") from error


def _check_header(path: Path, size: int) -> None:
    """Reject a safetensors header that is truncated, too long, or names a tensor twice; the library checks the rest."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(f"{path}: is damaged or truncated: its header has {length} bytes. {_FIX}")
        text = file.read(length)
    duplicates: list[str] = []

    def collect_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        duplicates.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=collect_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its header is not JSON: {_one_line(error)}. {_FIX}") from error
    if duplicates:
        raise UserError(f"{path}: its header contains {duplicates[0]} twice. {_FIX}")


def _check_zip(path: Path, size: int) -> None:
    """Reject archives that `torch.save` does not write, before anything is unpacked."""
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
    except (BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: is damaged or truncated: {_one_line(error)}. {_FIX}") from error
    names = [Path(entry.filename).name for entry in entries]
    if any(entry.compress_type != ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise UserError(f"{path}: is compressed, unlike files of torch.save, and could fill the memory. {_FIX}")
    if sum(entry.file_size for entry in entries) > size:
        raise UserError(f"{path}: is damaged: its entries have more bytes than the file. {_FIX}")
    if "constants.pkl" in names:
        raise UserError(f"{path}: is a TorchScript program, not weights. If you trust it, save its state_dict()")
    if "data.pkl" not in names:
        raise UserError(f"{path}: is a zip archive, but not of torch.save. {_FIX}")


def _load_torch(path: Path, *, mmap: bool) -> Any:
    if path.suffix == ".safetensors":  # torch and other readers rely on the name
        raise UserError(f"{path}: is a file of torch.save with the wrong suffix. Rename it to .pth")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # an invalid pickle raises many types
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path}: would run code when it is read ({found[1]}), so it is not read. If you trust it, load it "
                "yourself and save its tensors with safetensors.torch.save_file"
            ) from error
        reason = _one_line(error).removeprefix("Weights only load failed. ").partition(". ")[0]
        raise UserError(f"{path}: is not a file of weights, or is damaged: {reason}. {_FIX}") from error


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Read a directory in the layout of Hugging Face: one file, or the parts that an index names."""
    for name in _FOLDER_FILES:
        if (folder / name).exists():
            return read_weight_file(folder / name, strip_prefixes=False).tensors
    for name in _INDEX_FILES:
        if (folder / name).exists():
            return _read_indexed_files(folder, folder / name)
    raise UserError(
        f"{folder}: has no weights (expected one of {', '.join((*_FOLDER_FILES, *_INDEX_FILES))}). "
        "Use another directory"
    )


def _read_indexed_files(folder: Path, index: Path) -> dict[str, Tensor]:
    files = read_json(index, max_bytes=_MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{index}: expected a weight_map from names to files. {_FIX}")
    _check_inside_folder(folder, index, files.values())
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(files.values()):
        loaded, names = _read_file(folder / file), [name for name in files if files[name] == file]
        if missing := [name for name in names if name not in loaded]:
            raise UserError(f"{folder / file}: has no tensor {missing[0]}, but {index.name} lists it. {_FIX}")
        tensors |= {name: loaded[name] for name in names}
    return tensors


def _check_inside_folder(folder: Path, index: Path, file_names: Iterable[str]) -> None:
    """Reject files outside the directory; in the cache of the Hugging Face hub they are links to its blobs."""
    roots = [Path(os.path.realpath(folder))]  # unlike resolve, without an error for a link to itself
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parent.parent / "blobs")
    for name in file_names:
        try:
            parent = Path(os.path.realpath(folder / name)).parent
        except ValueError:  # a NUL character, or half of a surrogate pair
            parent = None
        if parent not in roots:
            raise UserError(f"{index}: {name!r} is outside the directory. Put all files into one directory")


def _find_container_key(content: Mapping[Any, Any]) -> str | None:
    return next((key for key in _CONTAINER_KEYS if isinstance(content.get(key), Mapping)), None)


def _training_args(args: object) -> dict[str, Any]:
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else {}


def _extract_tensors(path: Path, content: object, strip_prefixes: bool) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a state dict, got a {type(content).__name__}. Use a file of weights")
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    for name in tensors:
        if not isinstance(name, str):
            raise UserError(f"{path}: names a tensor {name!r} (expected text). Use a state dict")
    if not tensors:
        found = ", ".join(sorted(map(str, content))) or "nothing"
        raise UserError(f"{path}: contains no tensors (found {found}). Use a file of weights")
    for name, tensor in tensors.items():
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not is_plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} is not a plain CPU tensor with all its elements in the file. {_FIX}")
    while strip_prefixes and (prefix := _find_common_prefix(tensors)):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _find_common_prefix(names: Iterable[str]) -> str | None:
    return next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names)), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
