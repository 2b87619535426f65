"""Files of weights from anywhere, read without ever running what is in them.

A file is judged by its first bytes. Of what `torch.save` wrote, only tensors, plain values and the
options of a command line (`argparse.Namespace`, which MAE and MultiMAE keep beside their weights) are taken.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor

from c2fmae.core.errors import UserError

_CONTAINER_KEYS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")
"""Under which names files keep their weights; plain ones come before averaged ones."""

_PREFIXES = ("_orig_mod.", "module.", "model.")
"""What torch.compile, DistributedDataParallel and training frameworks put before every name."""

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX_FILES = tuple(f"{name}.index.json" for name in _FOLDER_FILES)
_MAX_HEADER_BYTES = 100_000_000  # bytes: the library's own limit
_FOREIGN_FORMATS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself. Fetch that with `git lfs pull`",
    b"<": "is a page of HTML or XML, not weights: a download went wrong. Fetch it again",
    b"{": "is JSON, not weights. Give the folder that it lies in, or the file of weights",
    b"\x1f\x8b": "is packed with gzip. Unpack it first",
    b"\x89HDF": "is HDF5, as Keras writes it. Convert it to safetensors",
}


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What a file or folder of weights holds."""

    tensors: dict[str, Tensor]
    """By name, without prefixes that all names share."""
    args: Mapping[str, Any]
    """The options of the training, where the file keeps them."""
    notes: tuple[str, ...] = ()


def read_weight_file(path: str | Path) -> WeightFile:
    """Return the tensors of a file or folder and what else is to be known of them."""
    path = Path(path)
    content = _read_folder(path) if path.is_dir() else _read_file(path)
    notes: list[str] = []
    args: dict[str, Any] = {}
    while isinstance(content, Mapping) and (key := _find_container_key(content)):
        args |= _training_args(content.get("args"))
        others = sorted(str(other) for other in content if other != key)
        notes += [f"taken from its {key!r}; it also holds {', '.join(others)}"] if others else []
        content = content[key]
    return WeightFile(tensors=_extract_tensors(path, content), args=args, notes=tuple(notes))


def _read_file(path: Path) -> Any:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
        if head.startswith(b"PK\x03\x04"):
            _check_zip(path, size)
            return _load_torch(path, mmap=True)  # what is not asked for, as an optimiser's state, is never read
        if head[8:9] == b"{":
            _check_header(path, size)
            return _load_safetensors(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith(b"\x80"):
        return _load_torch(path, mmap=False)
    problem = "is empty" if not head else "holds no weights: it is neither safetensors nor what torch.save writes"
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
    except Exception as error:  # whatever a header can be wrong in
        raise UserError(f"{path}: its header does not describe what is in it: {_one_line(error)}") from error


def _check_header(path: Path, size: int) -> None:
    """Refuse a safetensors header that is cut short, too long, or names a tensor twice; the library sees the rest."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(f"{path}: is damaged or cut short: its header of {length} bytes does not fit in it")
        text = file.read(length)
    duplicates: list[str] = []

    def collect_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        duplicates.extend(name for name in set(names) if names.count(name) > 1) if len(set(names)) < len(
            names
        ) else None
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=collect_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its header is not JSON: {_one_line(error)}") from error
    if duplicates:
        raise UserError(f"{path}: its header says {duplicates[0]} twice. One of the two would be lost")


def _check_zip(path: Path, size: int) -> None:
    """Refuse archives that `torch.save` does not write, before anything in them is unpacked."""
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
    except (BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: is damaged or cut short: {_one_line(error)}") from error
    names = [Path(entry.filename).name for entry in entries]
    if any(each.compress_type != ZIP_STORED or each.file_size != each.compress_size for each in entries):
        raise UserError(f"{path}: is compressed, as torch.save never does: it could fill the memory; refused")
    if sum(entry.file_size for entry in entries) > size:
        raise UserError(f"{path}: says that it holds more than fits in it; refused")
    if "constants.pkl" in names:
        raise UserError(f"{path}: is a TorchScript program, not weights. Save its state_dict() where you trust it")
    if "data.pkl" not in names:
        raise UserError(f"{path}: is a zip archive, but none of torch.save")


def _load_torch(path: Path, *, mmap: bool) -> Any:
    if path.suffix == ".safetensors":  # torch would believe the name, and so would others
        raise UserError(f"{path}: is what torch.save writes, in spite of its name. Name it .pth")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a pickle can be wrong in a hundred ways
        if what := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path}: would run code when it is read: it asks for {what[1]}; refused. If you trust it, load it "
                "by yourself and save its tensors alone with safetensors.torch.save_file"
            ) from error
        reason = _one_line(error).removeprefix("Weights only load failed. ").partition(". ")[0]
        raise UserError(f"{path}: is no file of weights, or a damaged one: {reason}") from error


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Read a folder of Hugging Face's: one file, or the parts that an index names."""
    for name in _FOLDER_FILES:
        if (folder / name).exists():
            return read_weight_file(folder / name).tensors
    for name in _INDEX_FILES:
        if (folder / name).exists():
            return _read_indexed_files(folder, folder / name)
    raise UserError(
        f"{folder}: is a folder without weights: none of {', '.join((*_FOLDER_FILES, *_INDEX_FILES))} is in it"
    )


def _read_indexed_files(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = {part: [name for name, place in places.items() if place == part] for part in places.values()}
        _check_inside_folder(folder, index, names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{index}: is no index of weights: expected a weight_map, names to files") from error
    tensors: dict[str, Tensor] = {}
    for part, expected_names in names.items():
        loaded = _read_file(folder / part)
        if missing := [name for name in expected_names if name not in loaded]:
            raise UserError(f"{folder / part}: lacks {missing[0]}, which {index.name} says is in it")
        tensors |= {name: loaded[name] for name in expected_names}
    return tensors


def _check_inside_folder(folder: Path, index: Path, file_names: Iterable[str]) -> None:
    """Refuse parts that lie elsewhere; in the hub's own cache they are links to its blobs."""
    roots = [folder.resolve()]
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parent.parent / "blobs")
    for part in file_names:
        if (folder / part).resolve().parent not in roots:
            raise UserError(f"{index}: {part!r} lies outside the folder; refused. Put all files into one folder")


def _find_container_key(content: Mapping[Any, Any]) -> str | None:
    return next((key for key in _CONTAINER_KEYS if isinstance(content.get(key), Mapping)), None)


def _training_args(args: object) -> dict[str, Any]:
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else {}


def _extract_tensors(path: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds no weights by name, but one {type(content).__name__}")
    tensors = {name: each.detach() for name, each in content.items() if isinstance(each, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors, but {', '.join(sorted(map(str, content))) or 'nothing'}")
    for name, tensor in tensors.items():
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not is_plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} is no plain tensor whose numbers are all in the file; refused")
    while prefix := next((each for each in _PREFIXES if all(name.startswith(each) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
